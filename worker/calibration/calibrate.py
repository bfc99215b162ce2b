"""Which batch sizes may be used, and what a step of each takes. Kernels may change with the batch and with the threads.

Every size steps the same chains, and the sizes that give the same bits are kept. On a CPU one thread sets the standard, so that
workers with different numbers of threads draw the same pictures.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.backends.host import available_cores
from worker.engine.pool import Pool, columns_of

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 64)
_BETWEEN = (3, 6, 12)  # where a size costs no memory of its own; larger ones gain nothing
_BEYOND = (128, 256)  # what fills a GPU
LONGEST_STEP_S = 1.0  # jobs join, stop and report once a step: no larger batch is tried than one that takes this long
_CHAINS, _CHAINS_S = (
    32,
    1.0,
)  # this many chains are compared, or as many as the smallest batches step in this time
_TIMED, _TIMED_S = 3, 1.0
_TRIALS, _MIDDLING = 5, 16
_FEWEST_THREADS, _FEWER_THREADS_GAIN = 4, 1.15  # a busy moment is not to halve the worker for good
_BEATEN = 2.0  # so much faster than it was, the machine was at other work then; neighbours alone seldom make that much
_ROW = (
    1.0,
    -0.5,
    1.0,
    0.5,
    0.5,
    0.1,
    0.1,
)  # p, q, bound, a, b, d, s: every part of a step takes part


@dataclass(frozen=True, slots=True)
class Calibration:
    """Seconds a step of each batch size that may be used; `threads` of a CPU, 0 elsewhere.

    `fewer` threads give the same bits, and are for times when others want the CPU; `by_fewer` is what their steps take.
    """

    seconds: dict[int, float]
    threads: int = 0
    fewer: int = 0
    by_fewer: dict[int, float] = field(default_factory=dict)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted(self.seconds))

    @property
    def image_steps_per_s(self) -> float:
        """Of the size that gives the most."""
        return max(size / seconds for size, seconds in self.seconds.items())

    def seconds_by(self, threads: int) -> dict[int, float]:
        """Those of `threads` or of `fewer`."""
        return self.seconds if threads == self.threads else self.by_fewer

    def __str__(self) -> str:
        rates = ", ".join(
            f"{size}: {size / seconds:.0f}" for size, seconds in sorted(self.seconds.items())
        )
        by = f" by {self.threads} threads" if self.threads else ""
        return f"image-steps/s by batch size{by}: {rates}"

    def use(self) -> None:
        """Compute with as many threads as were found best, in the calling thread."""
        compute_by(self.threads)


def compute_by(threads: int) -> None:
    """So many threads of the CPU, in the calling thread from now on; 0 leaves it as it is."""
    if threads and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def sizes_on(device: torch.device) -> tuple[int, ...]:
    """Batch sizes that are tried."""
    return (*SIZES, *_BEYOND) if device.type == "cuda" else tuple(sorted((*SIZES, *_BETWEEN)))


@torch.inference_mode()
def calibrate(pool: Pool, T: int, sizes: Sequence[int] = SIZES) -> Calibration:
    """Overwrites the pool's chains. `sizes` beyond its capacity, its memory or a second a step are left out."""
    trial = _Trial(pool, T, [size for size in sorted(sizes) if size <= pool.capacity])
    if pool.device.type != "cpu":
        return Calibration(trial.agreeing())
    for threads in _by_speed(trial):
        torch.set_num_threads(threads)
        seconds = trial.agreeing()
        same = [
            n
            for n in dict.fromkeys([threads // 2, 1])
            if 0 < n < threads and trial.same_by(n, seconds)
        ]
        if threads == 1 or 1 in same:
            fewer = max(same, default=1)
            torch.set_num_threads(fewer)
            return Calibration(
                seconds, threads, fewer, trial.seconds(seconds) if fewer < threads else {}
            )
        log.info(
            "with %d threads the network's bits are not those of one thread; trying fewer", threads
        )
    raise AssertionError("one thread is always among the choices")


@torch.inference_mode()
def is_beaten(pool: Pool, T: int, kept: Calibration) -> bool:
    """Whether a step takes so much less than `kept` says that it must have been measured beside other work. As `calibrate`.

    Of the smallest batch or of the largest: work that comes and goes is in the way of long steps more than of short ones.
    """
    kept.use()
    sizes = {kept.batch_sizes[0], kept.batch_sizes[-1]}
    try:
        now = _Trial(pool, T, sorted(sizes)).seconds(sizes)
    except (
        torch.OutOfMemoryError
    ):  # others have the memory now; which sizes still fit is found out when they are prepared
        return False
    return any(_BEATEN * seconds < kept.seconds[size] for size, seconds in now.items())


def _by_speed(trial: _Trial) -> Iterable[int]:
    """Numbers of threads, the fastest first, and one at the end. Of few cores all are used, however busy they are just now."""
    most = available_cores()
    seconds = {
        n: float("inf") for n in (most, most // 2, most // 4) if n == most or n >= _FEWEST_THREADS
    }
    if len(seconds) == 1:
        return dict.fromkeys([most, 1])
    for _, threads in itertools.product(range(_TRIALS), seconds):
        torch.set_num_threads(threads)
        seconds[threads] = min(seconds[threads], trial.seconds_of_one())
    fastest = min(seconds, key=lambda threads: seconds[threads])
    first = fastest if seconds[fastest] * _FEWER_THREADS_GAIN < seconds[most] else most
    return dict.fromkeys([first, *seconds, 1])


class _Trial:
    """The same chains, stepped in batches of any size."""

    def __init__(self, pool: Pool, T: int, sizes: Sequence[int]) -> None:
        self._pool, self._sizes = pool, sizes
        self._numbers = [
            (i, i * (T - 1) // (_CHAINS - 1), 0, i, 1, *_ROW)
            for i in range(min(_CHAINS, pool.capacity))
        ]
        self._time(sizes[0])  # the first of all allocates, lays out weights and chooses kernels
        self._image_s = self._time(sizes[0]) / sizes[0]
        self._numbers = self._numbers[: max(sizes[0], int(_CHAINS_S / self._image_s))]

    def agreeing(self) -> dict[int, float]:
        """Seconds a step of the sizes that give the same bits: of such groups the one of most sizes, then of the largest."""
        groups: list[tuple[Tensor, dict[int, float]]] = []
        for size, bits, seconds in self._runs():
            group = next((group for other, group in groups if torch.equal(bits, other)), None)
            if group is None:
                groups.append((bits, {size: seconds}))
            else:
                group[size] = seconds
        chosen = max((group for _, group in groups), key=lambda group: (len(group), max(group)))
        if others := sorted(size for _, group in groups for size in group if size not in chosen):
            log.info(
                "batches of %s give other bits than those of %s, and are not used",
                others,
                sorted(chosen),
            )
        return chosen

    def seconds(self, sizes: Iterable[int]) -> dict[int, float]:
        return {size: self._least(size) for size in sizes}

    def same_by(self, fewer: int, agreeing: Iterable[int]) -> bool:
        """Whether so many threads give, in each of these sizes, the bits that the present number gives in all of them."""
        threads, bits = torch.get_num_threads(), self._bits(min(agreeing))
        torch.set_num_threads(fewer)
        same = all(torch.equal(bits, self._bits(size)) for size in agreeing)
        torch.set_num_threads(threads)
        return same

    def seconds_of_one(self) -> float:
        """A step of a middling batch, or of as many as may be stepped at once."""
        fit = [
            size
            for size in self._sizes
            if size <= _MIDDLING and size * self._image_s < LONGEST_STEP_S
        ]
        return self._time(max(fit, default=self._sizes[0]))

    def _runs(self) -> Iterable[tuple[int, Tensor, float]]:
        """Size, bits and seconds, up to the size that takes too long or does not fit."""
        for size in self._sizes:
            try:
                bits = self._bits(size)
                seconds = self._least(size)
            except torch.OutOfMemoryError:
                log.warning(
                    "a batch of %d does not fit the memory of %s; smaller ones are used",
                    size,
                    self._pool.device,
                )
                torch.cuda.empty_cache()
                return
            yield size, bits, seconds
            if 2 * seconds > LONGEST_STEP_S:
                return

    def _bits(self, size: int) -> Tensor:
        """x and x_0_hat of all chains after one step in batches of `size`, float32 (2, chains, C, H, W).

        A larger batch is filled up with the same chains in other slots. Where they differ all is NaN, which equals nothing.
        """
        n, filled = len(self._numbers), max(len(self._numbers), size)
        numbers = [(slot, *self._numbers[slot % n][1:]) for slot in range(filled)]
        self._pool.start(range(filled), [0] * filled, [slot % n for slot in range(filled)])
        for first in range(0, filled, size):
            self._step(numbers[first : first + size], size)
        bits = torch.stack([self._pool.read(range(filled)), self._pool.read_x_0_hat(range(filled))])
        same = all(
            torch.equal(bits[:, first : first + n], bits[:, : min(n, filled - first)])
            for first in range(0, filled, n)
        )
        return bits[:, :n] if same else torch.full_like(bits[:, :n], math.nan)

    def _least(self, size: int) -> float:
        """Seconds of a step, of a few that take no longer than a second together: other work can only make them longer."""
        taken = [self._time(size)]
        while len(taken) < _TIMED and sum(taken) + min(taken) < _TIMED_S:
            taken.append(self._time(size))
        return min(taken)

    def _time(self, size: int) -> float:
        return self._step(self._numbers[:size], size)

    def _step(self, chains: Sequence[tuple[float, ...]], size: int) -> float:
        """Seconds of one step of these chains."""
        columns = columns_of(chains, size, self._pool.dummy)
        start = time.perf_counter()
        self._pool.step(columns)
        self._pool.wait()
        return time.perf_counter() - start
