"""Bringing a checkpoint onto its device as it runs best there.

What is chosen: the precision, the batch sizes and the number of threads.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from models.checkpoints.catalog import ClassesCard
from models.checkpoints.diffusers_format import Checkpoint
from worker.backends.host import WHOLE_HOST, HostShare, description, keep_freed_memory
from worker.backends.served_network import ServedNetwork, kernels_on_a_cpu, precisions
from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import (
    Between,
    Calibration,
    Clock,
    calibrate,
    draws_other_bits,
    is_beaten,
    sizes_on,
)
from worker.calibration.fingerprint import fingerprint_of
from worker.engine.pool import Pool
from worker.jobs.domain import SHARD_IMAGES, Precision
from worker.logs import event

log = logging.getLogger(__name__)
# The pool's share of the memory, and its share if a shard needs more. The rest is the network's.
_POOL_SHARE = 1 / 8
_MOST_SHARE = 1 / 2
# bf16 costs accuracy, so it has to be this much faster.
_GAIN = 1.1


@dataclass(frozen=True, slots=True)
class TunedNetwork:
    """A network in its pool, ready to step.

    Attributes:
        pool: The pool, prepared for every batch size.
        calibration: The batch sizes and threads to use.
        precision: What it computes in.
        kernels: Whose kernels compute it.
        fingerprint: The hash of the bits that it gives (`fingerprint_of`).
    """

    pool: Pool
    calibration: Calibration
    precision: Precision
    kernels: str
    fingerprint: str


def tune(
    loaded: Checkpoint,
    weights: str,
    shape: tuple[int, int, int],
    device: torch.device,
    capacity: int,
    precision: Precision | Literal["auto"],
    cache: CalibrationCache | None = None,
    clock: Clock = time.perf_counter,
    share: HostShare = WHOLE_HOST,
    between: Between = lambda: None,
    classes: ClassesCard | None = None,
) -> TunedNetwork:
    """Bring a checkpoint onto its device as it runs best there.

    Args:
        loaded: The checkpoint.
        weights: Its sha256.
        shape: An image's (C, H, W).
        device: Where it runs.
        capacity: Chains that the pool holds; fewer if the memory does not hold that many.
        precision: What it computes in. `auto` is what is worth more here.
        cache: Where calibrations are saved. None: they are measured now.
        clock: Tells the time.
        share: What it may use of the machine.
        between: Is called between the steps that are measured.
        classes: The classes of a conditional network.

    Raises:
        ValueError: The device does not compute the precision natively, or its memory is too small.
    """
    offered = precisions(device)
    if precision != "auto" and precision not in offered:
        raise ValueError(
            f"DDPM_PRECISION={precision} but this device ({description(device)})"
            f" computes {' and '.join(offered)} only; use auto"
        )
    keep_freed_memory()
    is_guided = classes is not None and classes.null is not None
    capacity = _capacity(capacity, shape, device, share, 3 if is_guided else 2)
    candidates = _Candidates(
        loaded, weights, shape, device, capacity, cache, clock, share.cores, between, classes
    )
    chosen = candidates.choose(offered) if precision == "auto" else precision
    candidates.make_sure(chosen)
    pool = candidates.pool(chosen)
    calibration = _prepared(pool, candidates.calibration(chosen))
    # Taken now, as it is served: the calibration may be an old one.
    fingerprint = fingerprint_of(pool, loaded.schedule.T, calibration.batch_sizes[0])
    return TunedNetwork(pool, calibration, chosen, candidates.kernels(chosen), fingerprint)


class _Candidates:
    """One checkpoint on one device in any precision: one at a time, as two may not fit."""

    def __init__(
        self,
        loaded: Checkpoint,
        weights: str,
        shape: tuple[int, int, int],
        device: torch.device,
        capacity: int,
        cache: CalibrationCache | None,
        clock: Clock,
        cores: int,
        between: Between,
        classes: ClassesCard | None,
    ) -> None:
        self._classes = classes
        self._loaded = loaded
        self._weights = weights
        self._shape = shape
        self._device = device
        self._capacity = capacity
        self._cache = cache
        self._clock = clock
        self._cores = cores
        self._between = between
        self._sizes = sizes_on(device)
        self._found: dict[Precision, Calibration] = {}
        self._measured_now: set[Precision] = set()
        self._last: tuple[Precision, ServedNetwork, Pool] | None = None

    @property
    def _form(self) -> tuple[str, ...]:
        """What models of the same weights may differ in, and steps or their bits depend on."""
        return (
            "x".join(map(str, self._shape)),
            f"T={self._loaded.schedule.T}",
            "dynamic" if self._loaded.process.clipping.is_dynamic else "",
            f"{self._rows} classes",
            "guided" if self._is_guided else "",
        )

    @property
    def _rows(self) -> int:
        return self._classes.rows if self._classes else 0

    @property
    def _is_guided(self) -> bool:
        return self._classes is not None and self._classes.null is not None

    def pool(self, precision: Precision) -> Pool:
        """Make the pool of a precision, or return it if it was the last one made."""
        return self._made(precision)[1]

    def choose(self, offered: Sequence[Precision]) -> Precision:
        """Choose the precision that is worth most.

        The first choice stays, whatever is measured later, as running workers sample in it.
        """

        def choose() -> Precision:
            return max(offered, key=self.worth)

        if self._cache is None or len(offered) == 1:
            return choose()
        kernels = kernels_on_a_cpu() if self._device.type == "cpu" else ""
        machine = (description(self._device, self._cores), torch.__version__, kernels)
        return cast(Precision, self._cache.decide((self._weights, *machine, *offered), choose))

    def calibration(self, precision: Precision) -> Calibration:
        """Return the calibration of a precision, saved or measured now."""
        if precision not in self._found:
            self._found[precision] = self._recall(precision)
        return self._found[precision]

    def make_sure(self, precision: Precision) -> None:
        """Measure again what was saved of a precision, if it does not hold any more.

        The bits have changed then, or it was measured beside other work.
        """
        saved = self.calibration(precision)
        if precision in self._measured_now:
            return
        pool, T = self.pool(precision), self._loaded.schedule.T
        if draws_other_bits(pool, T, saved):
            log.warning(
                "this machine gives other bits than when it was calibrated: which batch sizes agree"
                " is measured anew",
                extra=event("calibration.outdated"),
            )
            self._found[precision] = self._recall(precision, beaten=saved)
        elif is_beaten(pool, T, saved, self._clock, self._between):
            log.info(
                "steps are much faster than when they were calibrated, perhaps beside other work:"
                " they are calibrated anew",
                extra=event("calibration.outdated"),
            )
            self._found[precision] = self._recall(precision, beaten=saved)

    def _recall(self, precision: Precision, beaten: Calibration | None = None) -> Calibration:
        enough = str(self._capacity >= self._sizes[-1])
        machine = (description(self._device, self._cores), torch.__version__)
        conditions = (
            self._weights,
            *self._form,
            *machine,
            self.kernels(precision),
            precision,
            enough,
        )

        def measure() -> Calibration:
            self._measured_now.add(precision)
            T = self._loaded.schedule.T
            pool = self.pool(precision)
            return calibrate(
                pool,
                T,
                self._sizes,
                clock=self._clock,
                cores=self._cores,
                between=self._between,
            )

        if self._cache is None:
            return measure()
        return self._cache.recall(conditions, measure, beaten)

    def _made(self, precision: Precision) -> tuple[ServedNetwork, Pool]:
        if self._last is None or self._last[0] != precision:
            self._last = None
            # The recorded steps of a pool refer to it, and it to them.
            gc.collect()
            torch.cuda.empty_cache()
            fitting = [size for size in self._sizes if size <= self._capacity]
            network = ServedNetwork(self._loaded, self._device, precision, fitting, self._rows)
            pool = Pool(
                network,
                self._shape,
                self._capacity,
                self._device,
                dynamic=self._loaded.process.clipping.is_dynamic,
                learned=self._loaded.net.cfg.learns_variance,
                class_rows=self._rows,
                guided=self._is_guided,
            )
            self._last = (precision, network, pool)
        return self._last[1:]

    def kernels(self, precision: Precision) -> str:
        """Name the kernels that compute the network.

        On a GPU it has to be made first: a network that this project's kernels cannot run is left
        to PyTorch's.
        """
        if self._device.type == "cuda":
            return self._made(precision)[0].kernels
        return kernels_on_a_cpu()

    def worth(self, precision: Precision) -> float:
        """Rate a precision: the image-steps per second that would be worth as much in fp32."""
        cost = _GAIN if precision == "bf16" else 1
        return self.calibration(precision).image_steps_per_s / cost


def _prepared(pool: Pool, calibration: Calibration) -> Calibration:
    """Do at the start what the first step of each size would do.

    Raises:
        ValueError: No size fits the memory.
    """
    calibration.use()
    ready = {}
    # The largest goes first, so that smaller ones need no memory of their own.
    for size, seconds in sorted(calibration.seconds.items(), reverse=True):
        try:
            pool.prepare(size)
        except torch.OutOfMemoryError:
            log.warning(
                "a batch of %d does not fit the memory any more; smaller ones are used",
                size,
                extra=event("memory.short"),
            )
            continue
        ready[size] = seconds
    if not ready:
        raise ValueError(
            f"no batch fits the memory that is free on {pool.device};"
            " free some, or use another device"
        )
    # give back what only recording needed
    torch.cuda.empty_cache()
    by_fewer = {size: seconds for size, seconds in calibration.by_fewer.items() if size in ready}
    return replace(calibration, seconds=ready, by_fewer=by_fewer)


def _capacity(
    asked: int, shape: tuple[int, int, int], device: torch.device, share: HostShare, tensors: int
) -> int:
    """Limit the pool's chains, each of which has so many `tensors`, to what the memory holds.

    Raises:
        ValueError: Not even a shard of images fits, so the worker could never take one.
    """
    memory = share.memory_bytes(device)
    chain_bytes = tensors * 4 * math.prod(shape)
    in_share = int(_POOL_SHARE * memory) // chain_bytes
    at_most = int(_MOST_SHARE * memory) // chain_bytes
    fit = max(in_share, min(SHARD_IMAGES, at_most))
    if fit < SHARD_IMAGES:
        needed = SHARD_IMAGES * chain_bytes / _MOST_SHARE
        raise ValueError(
            f"half of the model's memory ({memory / 2**30:.1f} GiB) holds {fit} images of"
            f" {'x'.join(map(str, shape))}, and a worker takes {SHARD_IMAGES} at once;"
            f" give it {needed / 2**30:.1f} GiB or more, or name fewer models in DDPM_MODELS"
        )
    if fit < asked:
        log.info(
            "the pool holds %d images instead of %d: the rest of the memory is for networks",
            fit,
            asked,
            extra=event("memory.short"),
        )
    return min(asked, fit)
