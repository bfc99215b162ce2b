"""Brings a checkpoint onto its device as it runs best there: in which precision, in which batch sizes, by how many threads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch

from models.checkpoint import Checkpoint
from worker.calibrate import SIZES, Calibration, calibrate
from worker.calibration_cache import CalibrationCache
from worker.contract import Precision
from worker.machine import description, keep_freed_memory, memory_bytes
from worker.network import ServedNetwork, precisions
from worker.pool import Pool

log = logging.getLogger(__name__)
_POOL_SHARE = 1 / 8  # of the memory; the rest is for the network
_BF16_GAIN = 1.1  # bf16 costs accuracy: it has to be this much faster


@dataclass(frozen=True, slots=True)
class Tuned:
    pool: Pool
    calibration: Calibration
    precision: Precision


def tune(
    loaded: Checkpoint,
    weights: str,
    shape: tuple[int, int, int],
    device: torch.device,
    capacity: int,
    precision: Precision | Literal["auto"],
    cache: CalibrationCache | None = None,
) -> Tuned:
    """`weights` is the checkpoint's sha256. `capacity` is lowered where the memory does not hold that many chains.

    Raises ValueError for a precision that the device does not compute natively.
    """
    native = precisions(device)
    if precision != "auto" and precision not in native:
        raise ValueError(
            f"DDPM_PRECISION={precision} but this device ({description(device)}) computes {' and '.join(native)} only; use auto"
        )
    keep_freed_memory()
    capacity = _capacity(capacity, shape, device)
    pools: dict[Precision, Pool] = {}

    def pool(kind: Precision) -> Pool:
        if kind not in pools:
            pools[kind] = Pool(ServedNetwork(loaded, device, kind), shape, capacity, device)
        return pools[kind]

    def found(kind: Precision) -> Calibration:
        conditions = (weights, description(device), torch.__version__, kind, str(capacity >= SIZES[-1]))

        def measure() -> Calibration:
            return calibrate(pool(kind), loaded.schedule.T)

        return cache.recall(conditions, measure) if cache else measure()

    kinds = native if precision == "auto" else (precision,)
    calibrations = {kind: found(kind) for kind in kinds}
    chosen = max(kinds, key=lambda kind: calibrations[kind].image_steps_per_s / (_BF16_GAIN if kind == "bf16" else 1))
    return Tuned(pool(chosen), _prepared(pool(chosen), calibrations[chosen]), chosen)


def _prepared(pool: Pool, calibration: Calibration) -> Calibration:
    """Do at the start what the first step of each size would have to do."""
    calibration.use()
    ready = {}
    for size, seconds in calibration.seconds.items():
        try:
            pool.prepare(size)
        except torch.OutOfMemoryError:
            log.warning("a batch of %d does not fit the memory any more; smaller ones are used", size)
            break
        ready[size] = seconds
    return replace(calibration, seconds=ready)


def _capacity(asked: int, shape: tuple[int, int, int], device: torch.device) -> int:
    chain_bytes = 2 * 4 * shape[0] * shape[1] * shape[2]
    fit = int(_POOL_SHARE * memory_bytes(device)) // chain_bytes
    if fit < asked:
        log.info("the pool holds %d images instead of %d: more than an eighth of the memory is not for it", fit, asked)
    return min(asked, fit)
