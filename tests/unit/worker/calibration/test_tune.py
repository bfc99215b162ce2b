"""Bringing a checkpoint onto its device: precision, saved calibrations, and what fits."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import read_card
from models.checkpoints.diffusers_format import Checkpoint
from tests.support.clock import SimulatedClock
from tests.support.folders import write_model
from tests.support.networks import one_by_one
from worker.backends import host
from worker.backends.host import WHOLE_HOST, HostShare
from worker.calibration import tune as tune_module
from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import Calibration, Clock, calibrate
from worker.calibration.tune import TunedNetwork, tune
from worker.engine.pool import Pool
from worker.jobs.domain import Precision

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny")
    return diffusers_format.load(root / "tiny", read_card(root / "tiny").sha256)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Precision]:
    """List the precisions that were calibrated. Nothing is computed: steps take `SECONDS`."""
    kinds: list[Precision] = []

    def recorded(pool: Pool, T: int, sizes: Sequence[int], **_: object) -> Calibration:
        kinds.append("fp32" if pool.network.features.table.dtype == torch.float32 else "bf16")
        return Calibration({1: SECONDS[kinds[-1]]}, threads=1)

    monkeypatch.setattr(tune_module, "precisions", lambda device: ("fp32", "bf16"))
    monkeypatch.setattr(tune_module, "calibrate", recorded)
    monkeypatch.setattr(tune_module, "draws_other_bits", lambda pool, T, saved: False)
    monkeypatch.setattr(tune_module, "is_beaten", lambda pool, T, saved, clock, between: False)
    monkeypatch.setattr(Pool, "prepare", lambda pool, size: None)
    return kinds


SECONDS = {"fp32": 1.0, "bf16": 0.5}


def tuned(
    tiny: Checkpoint,
    precision: str = "auto",
    cache: CalibrationCache | None = None,
    capacity: int = 16,
    share: HostShare = WHOLE_HOST,
) -> TunedNetwork:
    """Tune with a clock by which every step takes a millisecond."""
    threads = torch.get_num_threads()
    clock = SimulatedClock(tick_s=0.001)
    try:
        return tune(tiny, "ab" * 32, SHAPE, CPU, capacity, precision, cache, clock, share)
    finally:
        torch.set_num_threads(threads)


def one_core(*options: Any, **more: Any) -> Calibration:
    """Calibrate by one thread."""
    return calibrate(*options, **more | {"cores": 1})


@pytest.mark.parametrize(("bf16_s", "chosen"), [(0.5, "bf16"), (0.95, "fp32"), (2.0, "fp32")])
def test_bf16_is_chosen_if_it_is_a_tenth_faster(tiny, measured, monkeypatch, bf16_s, chosen):
    monkeypatch.setitem(SECONDS, "bf16", bf16_s)
    assert tuned(tiny).precision == chosen


def test_one_network_is_on_the_device_at_a_time(tiny, measured, monkeypatch):
    """Two precisions of a large network might not fit."""
    pools: list[weakref.ref[Pool]] = []
    make = tune_module.Pool

    def pool(*options: object, **flags: bool) -> Pool:
        assert [ref for ref in pools if ref()] == []
        # A recorded step refers to the pool, as a recorded graph does.
        made = make(*options, record=one_by_one, **flags)
        pools.append(weakref.ref(made))
        return made

    monkeypatch.setattr(tune_module, "Pool", pool)
    tuned(tiny)
    assert len(pools) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_was_asked_for_is_used(tiny, measured, precision):
    found = tuned(tiny, precision)
    assert found.precision == precision
    assert len(measured) == 1


def test_a_precision_that_the_device_would_have_to_emulate_is_refused(tiny, measured, monkeypatch):
    monkeypatch.setattr(tune_module, "precisions", lambda device: ("fp32",))
    refusal = r"DDPM_PRECISION=bf16 but this device .* computes fp32 only; use auto"
    with pytest.raises(ValueError, match=refusal):
        tuned(tiny, "bf16")
    assert measured == []
    assert tuned(tiny).precision == "fp32"


def test_the_next_start_measures_nothing_and_comes_to_the_same(tiny, measured, tmp_path: Path):
    first = tuned(tiny, cache=CalibrationCache(tmp_path))
    assert len(measured) == 2
    again = tuned(tiny, cache=CalibrationCache(tmp_path))
    assert len(measured) == 2
    assert (again.precision, again.calibration) == (first.precision, first.calibration)


def test_a_calibration_that_was_made_beside_other_work_is_repeated_once(
    tiny, measured, monkeypatch, tmp_path: Path, caplog
):
    """It is that of the precision in use, which other workers use too."""
    first = tuned(tiny, cache=CalibrationCache(tmp_path))
    assert (first.precision, len(measured)) == ("bf16", 2)

    def is_beaten(pool: Pool, T: int, saved: Calibration, clock: Clock, between: object) -> bool:
        return saved.seconds[1] > SECONDS["bf16"]

    monkeypatch.setattr(tune_module, "is_beaten", is_beaten)
    for faster, times in ((0.5, 2), (0.1, 3), (0.1, 3)):
        monkeypatch.setitem(SECONDS, "bf16", faster)
        with caplog.at_level(logging.INFO):
            again = tuned(tiny, cache=CalibrationCache(tmp_path))
        assert (again.precision, again.calibration.seconds) == ("bf16", {1: faster})
        assert len(measured) == times
        assert ("calibrated anew" in caplog.text) == (times > 2)


def test_a_calibration_is_repeated_once_where_the_bits_have_changed(
    tiny, monkeypatch, tmp_path: Path, caplog
):
    """Another library under the same name does that, or a setting of it."""
    calibrated: list[str] = []

    def counted(*options: Any, **more: Any) -> Calibration:
        found = one_core(*options, **more)
        calibrated.append(found.fingerprint)
        return found

    monkeypatch.setattr(tune_module, "calibrate", counted)
    first = tuned(tiny, "fp32", CalibrationCache(tmp_path))
    step = Pool.step

    def other_step(pool: Pool, columns: Tensor) -> None:
        step(pool, columns)
        pool.x[0, 0, 0, 0] *= 1 + 2**-23

    monkeypatch.setattr(Pool, "step", other_step)
    for _ in range(2):
        again = tuned(tiny, "fp32", CalibrationCache(tmp_path))
    assert calibrated == [first.fingerprint, again.fingerprint]
    assert first.fingerprint != again.fingerprint
    assert "this machine gives other bits than when it was calibrated" in caplog.text


def test_a_calibration_of_this_start_is_not_repeated(tiny, measured, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(tune_module, "is_beaten", lambda pool, T, saved, clock, between: True)
    tuned(tiny, cache=CalibrationCache(tmp_path))
    assert len(measured) == 2


def test_other_kernels_have_a_calibration_of_their_own(tiny, measured, monkeypatch, tmp_path: Path):
    """Other kernels run without a C compiler, for example, and other sizes of theirs agree."""
    for kernels in ("ours", "pytorch", "ours"):
        monkeypatch.setattr(tune_module, "kernels_on_a_cpu", lambda kernels=kernels: kernels)
        tuned(tiny, "fp32", CalibrationCache(tmp_path))
    assert len(measured) == 2


def test_models_that_share_weights_have_each_a_calibration_of_its_own(
    tiny, measured, tmp_path: Path
):
    """Steps with a dynamic threshold give other bits, and would make the other's outdated."""
    clipping = replace(tiny.process.clipping, ratio=0.995)
    dynamic = replace(tiny, process=replace(tiny.process, clipping=clipping))
    assert clipping.is_dynamic
    for checkpoint in (tiny, dynamic, tiny, dynamic):
        tuned(checkpoint, "fp32", CalibrationCache(tmp_path))
    assert len(measured) == 2


def test_the_pool_is_lowered_to_an_eighth_of_the_memory(tiny, measured, monkeypatch, caplog):
    monkeypatch.setattr(host, "memory_bytes", lambda device: 8 * 70 * 512)
    with caplog.at_level(logging.INFO):
        assert tuned(tiny, capacity=128).pool.capacity == 70
    assert "holds 70 images instead of 128" in caplog.text


def test_models_of_one_worker_share_the_memory_of_its_host(tiny, measured, monkeypatch):
    """Sixteen pools of an eighth each would be twice the memory."""
    monkeypatch.setattr(host, "memory_bytes", lambda device: 16 * 8 * 70 * 512)
    share = HostShare(models=16)
    assert tuned(tiny, capacity=128, share=share).pool.capacity == 70


def test_models_take_their_pools_of_a_gpu_from_what_is_free(monkeypatch):
    monkeypatch.setattr(host, "memory_bytes", lambda device: 100)
    assert HostShare(models=4).memory_bytes(torch.device("cuda")) == 100


@pytest.mark.parametrize(("most_threads", "cores"), [(None, 8), (3, 3), (64, 8)])
def test_a_step_is_computed_by_no_more_threads_than_are_allowed(
    tiny, monkeypatch, tmp_path: Path, most_threads, cores
):
    monkeypatch.setattr(host, "available_cores", lambda: 8)
    asked: list[int] = []

    def counted(*options: Any, cores: int, **more: Any) -> Calibration:
        asked.append(cores)
        return one_core(*options, **more)

    monkeypatch.setattr(tune_module, "calibrate", counted)
    cache = CalibrationCache(tmp_path)
    tuned(tiny, "fp32", cache, share=HostShare(most_threads))
    assert asked == [cores]
    tuned(tiny, "fp32", cache, share=HostShare(2))
    assert asked == [cores, 2], "another number of threads has a calibration of its own"


def test_the_pool_holds_a_shard_if_half_of_the_memory_does(tiny, measured, monkeypatch):
    monkeypatch.setattr(host, "memory_bytes", lambda device: 2 * 64 * 512)
    assert tuned(tiny, capacity=128).pool.capacity == 64


def test_a_worker_whose_memory_holds_no_shard_does_not_start(tiny, measured, monkeypatch):
    """It would be ready, and never take a shard."""
    monkeypatch.setattr(host, "memory_bytes", lambda device: 2 * 64 * 512 - 1)
    refusal = r"holds 63 images of 1x8x8, and a worker takes 64 at once; give it 0\.0 GiB or more"
    with pytest.raises(ValueError, match=refusal):
        tuned(tiny, capacity=128)


def test_a_saved_batch_size_that_does_not_fit_any_more_is_not_used(
    tiny, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr(tune_module, "calibrate", one_core)
    cache = CalibrationCache(tmp_path)
    first = tuned(tiny, "fp32", cache, capacity=8).calibration.batch_sizes
    step = Pool.step

    def full(pool: Pool, columns: Tensor) -> None:
        if columns.shape[1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(pool, columns)

    monkeypatch.setattr(Pool, "step", full)
    fitting = tuned(tiny, "fp32", cache, capacity=8).calibration.batch_sizes
    assert fitting == tuple(size for size in first if size <= 2)
    assert len(fitting) < len(first)


def test_a_measured_batch_size_that_does_not_fit_now_is_not_used(tiny, measured, monkeypatch):
    found = Calibration({1: 1.0, 2: 1.5, 4: 2.0}, 2, 1, {1: 2.0, 4: 4.0})
    monkeypatch.setattr(tune_module, "calibrate", lambda pool, T, sizes, **_: found)

    def full(pool: Pool, size: int) -> None:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pool, "prepare", full)
    calibration = tuned(tiny, "fp32").calibration
    assert (calibration.batch_sizes, calibration.by_fewer) == ((1, 2), {1: 2.0})


def test_a_start_at_which_no_batch_fits_any_more_is_refused(tiny, measured, monkeypatch):
    def full(pool: Pool, size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pool, "prepare", full)
    with pytest.raises(ValueError, match="no batch fits the memory that is free on cpu"):
        tuned(tiny, "fp32")


def test_the_precision_that_was_chosen_first_stays_whatever_is_measured_later(
    tiny, measured, monkeypatch, tmp_path: Path
):
    monkeypatch.setitem(SECONDS, "bf16", 2.0)
    cache = CalibrationCache(tmp_path)
    assert tuned(tiny, cache=cache).precision == "fp32"
    monkeypatch.setitem(SECONDS, "bf16", 0.1)
    assert tuned(tiny, cache=cache, capacity=256).precision == "fp32"
    assert len(measured) == 3, "fp32 was measured again, for the larger pool"
    emptied = CalibrationCache(tmp_path / "emptied")
    assert tuned(tiny, cache=emptied).precision == "bf16"
