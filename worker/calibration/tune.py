"""Brings a checkpoint onto its device as it runs best there: in which precision, in which batch sizes, by how many threads."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch

from models.checkpoints.diffusers_format import Checkpoint
from worker.backends.host import description, keep_freed_memory, memory_bytes
from worker.backends.served_network import ServedNetwork, kernels_on_a_cpu, precisions
from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import Calibration, calibrate, is_beaten, sizes_on
from worker.engine.pool import Pool
from worker.jobs.domain import SHARD_IMAGES, Precision

log = logging.getLogger(__name__)
_POOL_SHARE, _MOST_SHARE = (
    1 / 8,
    1 / 2,
)  # of the memory, the latter where a shard needs it; the rest is for the network
_GAIN = 1.1  # bf16 costs accuracy: it has to be this much faster


@dataclass(frozen=True, slots=True)
class TunedNetwork:
    pool: Pool
    calibration: Calibration
    precision: Precision
    kernels: str


def tune(
    loaded: Checkpoint,
    weights: str,
    shape: tuple[int, int, int],
    device: torch.device,
    capacity: int,
    precision: Precision | Literal["auto"],
    cache: CalibrationCache | None = None,
) -> TunedNetwork:
    """`weights` is the checkpoint's sha256. `capacity` is lowered where the memory does not hold that many chains.

    Raises ValueError for a precision that the device does not compute natively.
    """
    offered = precisions(device)
    if precision != "auto" and precision not in offered:
        raise ValueError(
            f"DDPM_PRECISION={precision} but this device ({description(device)}) computes {' and '.join(offered)} only; use auto"
        )
    keep_freed_memory()
    bench = _Bench(loaded, weights, shape, device, _capacity(capacity, shape, device), cache)
    chosen = bench.choose(offered) if precision == "auto" else precision
    bench.make_sure(chosen)
    pool = bench.pool(chosen)
    return TunedNetwork(
        pool, _prepared(pool, bench.calibration(chosen)), chosen, bench.kernels(chosen)
    )


class _Bench:
    """One checkpoint on one device in any precision: one at a time, as two may not fit the memory."""

    def __init__(
        self,
        loaded: Checkpoint,
        weights: str,
        shape: tuple[int, int, int],
        device: torch.device,
        capacity: int,
        cache: CalibrationCache | None,
    ) -> None:
        self._loaded, self._weights, self._shape, self._device = loaded, weights, shape, device
        self._capacity, self._cache = capacity, cache
        self._sizes = sizes_on(device)
        self._found: dict[Precision, Calibration] = {}
        self._measured: set[Precision] = set()  # here and now
        self._last: tuple[Precision, ServedNetwork, Pool] | None = None

    def pool(self, precision: Precision) -> Pool:
        return self._made(precision)[1]

    def choose(self, offered: Sequence[Precision]) -> Precision:
        """What was chosen first stays, whatever is measured later: workers that run draw in it."""

        def choose() -> Precision:
            return max(offered, key=self.worth)

        if self._cache is None or len(offered) == 1:
            return choose()
        kernels = kernels_on_a_cpu() if self._device.type == "cpu" else ""
        conditions = (
            self._weights,
            description(self._device),
            torch.__version__,
            kernels,
            *offered,
        )
        return cast(Precision, self._cache.decide(conditions, choose))

    def calibration(self, precision: Precision) -> Calibration:
        if precision not in self._found:
            self._found[precision] = self._recall(precision)
        return self._found[precision]

    def make_sure(self, precision: Precision) -> None:
        """Measure anew what was kept of it, if it was measured beside other work."""
        kept = self.calibration(precision)
        if precision not in self._measured and is_beaten(
            self.pool(precision), self._loaded.schedule.T, kept
        ):
            log.info(
                "steps are much faster than when they were calibrated, perhaps beside other work: they are calibrated anew"
            )
            self._found[precision] = self._recall(precision, beaten=kept)

    def _recall(self, precision: Precision, beaten: Calibration | None = None) -> Calibration:
        enough = str(self._capacity >= self._sizes[-1])
        conditions = (
            self._weights,
            description(self._device),
            torch.__version__,
            self.kernels(precision),
            precision,
            enough,
        )

        def measure() -> Calibration:
            self._measured.add(precision)
            return calibrate(self.pool(precision), self._loaded.schedule.T, self._sizes)

        return self._cache.recall(conditions, measure, beaten) if self._cache else measure()

    def _made(self, precision: Precision) -> tuple[ServedNetwork, Pool]:
        if self._last is None or self._last[0] != precision:
            self._last = None
            gc.collect()  # what was recorded of the pool's steps refers to the pool
            torch.cuda.empty_cache()
            fitting = [size for size in self._sizes if size <= self._capacity]
            network = ServedNetwork(self._loaded, self._device, precision, fitting)
            self._last = (
                precision,
                network,
                Pool(network, self._shape, self._capacity, self._device),
            )
        return self._last[1:]

    def kernels(self, precision: Precision) -> str:
        """On a GPU the network has to be made to know: what ours cannot do is left to PyTorch's."""
        return (
            self._made(precision)[0].kernels if self._device.type == "cuda" else kernels_on_a_cpu()
        )

    def worth(self, precision: Precision) -> float:
        """The rate that would be worth as much in fp32."""
        return self.calibration(precision).image_steps_per_s / (_GAIN if precision == "bf16" else 1)


def _prepared(pool: Pool, calibration: Calibration) -> Calibration:
    """Do at the start what the first step of each size would have to do. Raises ValueError where none fits."""
    calibration.use()
    ready = {}
    for size, seconds in sorted(
        calibration.seconds.items(), reverse=True
    ):  # smaller ones then need no memory of their own
        try:
            pool.prepare(size)
        except torch.OutOfMemoryError:
            log.warning(
                "a batch of %d does not fit the memory any more; smaller ones are used", size
            )
            continue
        ready[size] = seconds
    if not ready:
        raise ValueError(
            f"no batch fits the memory that is free on {pool.device}; free some, or use another device"
        )
    torch.cuda.empty_cache()  # what was only for recording
    by_fewer = {size: seconds for size, seconds in calibration.by_fewer.items() if size in ready}
    return replace(calibration, seconds=ready, by_fewer=by_fewer)


def _capacity(asked: int, shape: tuple[int, int, int], device: torch.device) -> int:
    """Raises ValueError where not even a shard of images fits: none would ever be taken."""
    memory, chain_bytes = memory_bytes(device), 2 * 4 * shape[0] * shape[1] * shape[2]
    fit = max(
        int(_POOL_SHARE * memory) // chain_bytes,
        min(SHARD_IMAGES, int(_MOST_SHARE * memory) // chain_bytes),
    )
    if fit < SHARD_IMAGES:
        raise ValueError(
            f"half of the memory ({memory / 2**30:.1f} GiB) holds {fit} images of {'x'.join(map(str, shape))}, and a worker "
            f"takes {SHARD_IMAGES} at once; give it {SHARD_IMAGES * chain_bytes / _MOST_SHARE / 2**30:.1f} GiB or more"
        )
    if fit < asked:
        log.info(
            "the pool holds %d images instead of %d: the rest of the memory is for the network",
            fit,
            asked,
        )
    return min(asked, fit)
