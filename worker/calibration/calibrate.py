"""The batch sizes and threads that a worker may use, and what a step of each takes.

Kernels, and with them the last bits, may change with the batch size and with the threads. So every
size steps the same chains, and the sizes that give the same bits are used. On a CPU one thread sets
the standard, so that workers with different numbers of threads make the same images.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.backends.host import available_cores
from worker.calibration.fingerprint import chains_of, fingerprint_of
from worker.engine.pool import Pool, columns_of
from worker.logs import event

log = logging.getLogger(__name__)
# seconds, of any origin
Clock = Callable[[], float]
# what is called between two steps of a measurement, so that other models' chains take theirs
Between = Callable[[], object]

SIZES = (1, 2, 4, 8, 16, 32, 64)
# On a CPU a size costs no memory of its own. Larger sizes in between gain nothing.
_BETWEEN = (3, 6, 12)
# what fills a GPU
_BEYOND = (128, 256)
# Jobs join, stop and report once a step, so no larger batch is tried than one that takes this long.
LONGEST_STEP_S = 1.0
# So many chains are compared, or as many as the smallest batches step in this time.
_CHAINS = 32
_CHAINS_S = 1.0
# A step is timed so often, or until this time is spent.
_TIMED = 3
_TIMED_S = 1.0
# Numbers of threads are compared so often, in a batch of this size.
_TRIALS = 5
_MIDDLING = 16
_FEWEST_THREADS = 4
# Fewer threads must be this much faster: a busy moment must not halve the worker for good.
_FEWER_THREADS_GAIN = 1.15
# If a step is this much faster than when it was calibrated, the machine was at other work then. The
# other work on a shared machine seldom makes that much of a difference.
_BEATEN = 2.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """The batch sizes that may be used, and the threads that compute them.

    Attributes:
        seconds: What a step of each batch size takes.
        threads: Threads of a CPU that compute it; 0 elsewhere.
        fewer: Threads that give the same bits, for times when other processes want the CPU.
        by_fewer: What a step of each batch size takes by `fewer` threads.
        fingerprint: Of the bits that all of this gives (`fingerprint_of`).
    """

    seconds: dict[int, float]
    threads: int = 0
    fewer: int = 0
    by_fewer: dict[int, float] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes, ascending."""
        return tuple(sorted(self.seconds))

    @property
    def image_steps_per_s(self) -> float:
        """Image-steps per second, of the size that gives the most."""
        return max(size / seconds for size, seconds in self.seconds.items())

    def seconds_by(self, threads: int) -> dict[int, float]:
        """Return what steps take by `threads`, or by `fewer`."""
        return self.seconds if threads == self.threads else self.by_fewer

    def __str__(self) -> str:
        by_size = sorted(self.seconds.items())
        rates = ", ".join(f"{size}: {size / seconds:.0f}" for size, seconds in by_size)
        by = f" by {self.threads} threads" if self.threads else ""
        return f"image-steps/s by batch size{by}: {rates}"

    def use(self) -> None:
        """Compute by `threads` from now on, in the calling thread."""
        compute_by(self.threads)


def compute_by(threads: int) -> None:
    """Compute by so many CPU threads from now on, in the calling thread; 0 changes nothing."""
    if threads and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def sizes_on(device: torch.device) -> tuple[int, ...]:
    """List the batch sizes to try on a device."""
    return (*SIZES, *_BEYOND) if device.type == "cuda" else tuple(sorted((*SIZES, *_BETWEEN)))


@torch.inference_mode()
def calibrate(
    pool: Pool,
    T: int,
    sizes: Sequence[int] = SIZES,
    *,
    clock: Clock = time.perf_counter,
    cores: int | None = None,
    longest_step_s: float = LONGEST_STEP_S,
    between: Between = lambda: None,
) -> Calibration:
    """Measure steps of a pool, whose chains are overwritten.

    The calling thread computes by the chosen number of threads afterwards, or by `fewer`.

    Args:
        pool: What is measured.
        T: The timesteps of its network.
        sizes: Batch sizes to try. Those that the pool cannot hold, or its memory, or that take too
            long, are left out.
        clock: Tells the time.
        cores: Cores that this process may use. None: as many as there are.
        longest_step_s: No larger batch is tried than one that takes half of this.
        between: Is called before each step. It leaves the number of threads as it is.

    Raises:
        torch.OutOfMemoryError: Not even the smallest batch fits the GPU's memory.
    """
    fitting = [size for size in sorted(sizes) if size <= pool.capacity]
    trial = _Trial(pool, T, fitting, clock, longest_step_s, between)
    if pool.device.type != "cpu":
        seconds = trial.agreeing()
        return Calibration(seconds, fingerprint=fingerprint_of(pool, T, min(seconds)))
    for threads in _by_speed(trial, available_cores() if cores is None else cores):
        torch.set_num_threads(threads)
        seconds = trial.agreeing()
        others = [n for n in dict.fromkeys([threads // 2, 1]) if 0 < n < threads]
        same = [n for n in others if trial.same_by(n, seconds)]
        if threads == 1 or 1 in same:
            fewer = max(same, default=1)
            torch.set_num_threads(fewer)
            by_fewer = trial.seconds(seconds) if fewer < threads else {}
            fingerprint = fingerprint_of(pool, T, min(seconds))
            return Calibration(seconds, threads, fewer, by_fewer, fingerprint)
        log.info(
            "with %d threads the network's bits are not those of one thread; trying fewer",
            threads,
            extra=event("calibration.threads"),
        )
    raise AssertionError("one thread is always among the choices")


def draws_other_bits(pool: Pool, T: int, saved: Calibration) -> bool:
    """Tell whether bits have changed since a calibration was saved.

    Then nobody knows which sizes agree. The smallest and the largest one are asked.

    The pool's chains are overwritten. The calling thread computes by the saved number of threads
    afterwards.
    """
    saved.use()
    # The largest goes first, so that the smallest needs no memory of its own.
    sizes = (saved.batch_sizes[-1], saved.batch_sizes[0])
    try:
        return any(fingerprint_of(pool, T, size) != saved.fingerprint for size in sizes)
    # Preparing the sizes will find out which still fit.
    except torch.OutOfMemoryError:
        return False


@torch.inference_mode()
def is_beaten(
    pool: Pool,
    T: int,
    saved: Calibration,
    clock: Clock = time.perf_counter,
    between: Between = lambda: None,
) -> bool:
    """Tell whether steps are so much faster now that a saved calibration must not stay.

    It must have been measured while the machine did other work as well. The smallest and the
    largest batch are timed, as work that comes and goes delays long steps more than short ones.

    The pool's chains are overwritten. The calling thread computes by the saved number of threads
    afterwards.
    """
    saved.use()
    sizes = {saved.batch_sizes[0], saved.batch_sizes[-1]}
    try:
        trial = _Trial(pool, T, sorted(sizes), clock, LONGEST_STEP_S, between)
        now = trial.seconds(sizes)
    # Other processes have the memory now. Preparing the sizes will find out which still fit.
    except torch.OutOfMemoryError:
        return False
    return any(_BEATEN * seconds < saved.seconds[size] for size, seconds in now.items())


def _by_speed(trial: _Trial, most: int) -> Iterable[int]:
    """List numbers of threads, the fastest first, and one at the end.

    Of few cores all are used, however busy they are just now.
    """
    halves = (most, most // 2, most // 4)
    seconds = {n: math.inf for n in halves if n == most or n >= _FEWEST_THREADS}
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

    def __init__(
        self,
        pool: Pool,
        T: int,
        sizes: Sequence[int],
        clock: Clock,
        longest_step_s: float,
        between: Between = lambda: None,
    ) -> None:
        self._between = between
        self._pool = pool
        self._sizes = sizes
        self._clock = clock
        self._longest_step_s = longest_step_s
        self._numbers = chains_of(pool, T, _CHAINS)
        # The first step of all allocates memory, lays out weights and chooses kernels.
        self._time(sizes[0])
        self._image_s = self._time(sizes[0]) / sizes[0]
        self._numbers = self._numbers[: max(sizes[0], int(_CHAINS_S / self._image_s))]

    def agreeing(self) -> dict[int, float]:
        """Time a step of each size of the group that gives the same bits.

        There may be several such groups. The one of most sizes counts, and of two equally long
        ones that with the largest size.
        """
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
                extra=event("calibration.batches"),
            )
        return chosen

    def seconds(self, sizes: Iterable[int]) -> dict[int, float]:
        """Time a step of each size, in seconds."""
        return {size: self._least(size) for size in sizes}

    def same_by(self, fewer: int, agreeing: Iterable[int]) -> bool:
        """Tell whether so many threads give the bits of the present number, in each of the sizes.

        The present number gives the same bits in all of them.
        """
        threads = torch.get_num_threads()
        bits = self._bits(min(agreeing))
        torch.set_num_threads(fewer)
        same = all(torch.equal(bits, self._bits(size)) for size in agreeing)
        torch.set_num_threads(threads)
        return same

    def seconds_of_one(self) -> float:
        """Time a step of a middling batch, or of the largest that is allowed."""
        middling = [size for size in self._sizes if size <= _MIDDLING]
        fit = [size for size in middling if size * self._image_s < self._longest_step_s]
        return self._time(max(fit, default=self._sizes[0]))

    def _runs(self) -> Iterable[tuple[int, Tensor, float]]:
        """Step each size, until one takes too long or does not fit: size, bits, seconds."""
        for size in self._sizes:
            try:
                bits = self._bits(size)
                seconds = self._least(size)
            except torch.OutOfMemoryError:
                log.warning(
                    "a batch of %d does not fit the memory of %s; smaller ones are used",
                    size,
                    self._pool.device,
                    extra=event("memory.short"),
                )
                torch.cuda.empty_cache()
                return
            yield size, bits, seconds
            if 2 * seconds > self._longest_step_s:
                return

    def _bits(self, size: int) -> Tensor:
        """Step all chains once in batches of `size`: x and x_0_hat, float32 (2, chains, C, H, W).

        A batch of more chains than there are is filled up with the same chains in other slots. If
        these differ, everything is NaN, which equals nothing.
        """
        n = len(self._numbers)
        filled = max(n, size)
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
        """Time a few steps, for no more than a second together, and return the least.

        Other work on the machine can only make a step longer.
        """
        taken = [self._time(size)]
        while len(taken) < _TIMED and sum(taken) + min(taken) < _TIMED_S:
            taken.append(self._time(size))
        return min(taken)

    def _time(self, size: int) -> float:
        return self._step(self._numbers[:size], size)

    def _step(self, chains: Sequence[tuple[float, ...]], size: int) -> float:
        """Time one step of these chains, in seconds."""
        columns = columns_of(chains, size, self._pool.dummy, self._pool.width)
        self._between()
        # what other models have queued on a GPU is not this step's
        self._pool.wait()
        start = self._clock()
        self._pool.step(columns)
        self._pool.wait()
        return self._clock() - start
