"""How a checkpoint comes to run: the faster precision, from the cache where it is known, in a pool that fits."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import read_card
from models.checkpoints.diffusers_format import Checkpoint
from tests.support.folders import write_model
from tests.support.networks import one_by_one
from worker.calibration import tune as tune_module
from worker.calibration.cache import CalibrationCache
from worker.calibration.calibrate import Calibration
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
    """In which precisions calibration was done; a step takes `SECONDS` of each. Nothing is computed."""
    kinds: list[Precision] = []

    def calibrate(pool: Pool, T: int, sizes: Sequence[int]) -> Calibration:
        kinds.append("fp32" if pool.network.features.dtype == torch.float32 else "bf16")
        return Calibration({1: SECONDS[kinds[-1]]}, threads=1)

    monkeypatch.setattr(tune_module, "precisions", lambda device: ("fp32", "bf16"))
    monkeypatch.setattr(tune_module, "calibrate", calibrate)
    monkeypatch.setattr(tune_module, "is_beaten", lambda pool, T, kept: False)
    monkeypatch.setattr(Pool, "prepare", lambda pool, size: None)
    return kinds


SECONDS = {"fp32": 1.0, "bf16": 0.5}


def tuned(
    tiny: Checkpoint,
    precision: str = "auto",
    cache: CalibrationCache | None = None,
    capacity: int = 16,
) -> TunedNetwork:
    threads = torch.get_num_threads()
    try:
        return tune(tiny, "ab" * 32, SHAPE, CPU, capacity, precision, cache)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("bf16_s", "chosen"), [(0.5, "bf16"), (0.95, "fp32"), (2.0, "fp32")])
def test_bf16_is_taken_where_it_is_a_tenth_faster(tiny, measured, monkeypatch, bf16_s, chosen):
    monkeypatch.setitem(SECONDS, "bf16", bf16_s)
    assert tuned(tiny).precision == chosen


def test_one_network_is_on_the_device_at_a_time(tiny, measured, monkeypatch):
    """In two precisions a large one might not fit."""
    pools: list[weakref.ref[Pool]] = []
    make = tune_module.Pool

    def pool(*options: object) -> Pool:
        assert [ref for ref in pools if ref()] == []
        made = make(
            *options, record=one_by_one
        )  # which refers to the pool, as a recorded graph does
        pools.append(weakref.ref(made))
        return made

    monkeypatch.setattr(tune_module, "Pool", pool)
    tuned(tiny)
    assert len(pools) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_that_was_asked_for_is_not_argued_with(tiny, measured, precision):
    found = tuned(tiny, precision)
    assert found.precision == precision
    assert len(measured) == 1


def test_a_precision_that_the_device_would_have_to_emulate_is_refused(tiny, measured, monkeypatch):
    monkeypatch.setattr(tune_module, "precisions", lambda device: ("fp32",))
    with pytest.raises(
        ValueError, match=r"DDPM_PRECISION=bf16 but this device .* computes fp32 only; use auto"
    ):
        tuned(tiny, "bf16")
    assert measured == []
    assert tuned(tiny).precision == "fp32"


def test_the_next_start_measures_nothing_and_comes_to_the_same(tiny, measured, tmp_path: Path):
    first = tuned(tiny, cache=CalibrationCache(tmp_path))
    assert len(measured) == 2
    again = tuned(tiny, cache=CalibrationCache(tmp_path))
    assert len(measured) == 2
    assert (again.precision, again.calibration) == (first.precision, first.calibration)


def test_what_was_calibrated_beside_other_work_is_measured_anew_once(
    tiny, measured, monkeypatch, tmp_path: Path, caplog
):
    """In the precision that is used; workers beside this one use it too."""
    first = tuned(tiny, cache=CalibrationCache(tmp_path))
    assert (first.precision, len(measured)) == ("bf16", 2)
    monkeypatch.setattr(
        tune_module, "is_beaten", lambda pool, T, kept: kept.seconds[1] > SECONDS["bf16"]
    )
    for faster, times in ((0.5, 2), (0.1, 3), (0.1, 3)):
        monkeypatch.setitem(SECONDS, "bf16", faster)
        with caplog.at_level(logging.INFO):
            again = tuned(tiny, cache=CalibrationCache(tmp_path))
        assert (again.precision, again.calibration.seconds, len(measured)) == (
            "bf16",
            {1: faster},
            times,
        )
        assert ("calibrated anew" in caplog.text) == (times > 2)


def test_what_was_measured_just_now_is_not_doubted(tiny, measured, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(tune_module, "is_beaten", lambda pool, T, kept: True)
    tuned(tiny, cache=CalibrationCache(tmp_path))
    assert len(measured) == 2


def test_what_was_calibrated_with_other_kernels_is_measured_anew(
    tiny, measured, monkeypatch, tmp_path: Path
):
    """On a GPU: without a C compiler, say, other kernels run, of which other sizes agree."""
    for kernels in ("ours", "pytorch", "ours"):
        monkeypatch.setattr(
            tune_module._Bench, "kernels", lambda bench, precision, kernels=kernels: kernels
        )
        tuned(tiny, "fp32", CalibrationCache(tmp_path))
    assert len(measured) == 2


def test_the_pool_is_lowered_to_an_eighth_of_the_memory(tiny, measured, monkeypatch, caplog):
    monkeypatch.setattr(tune_module, "memory_bytes", lambda device: 8 * 70 * 512)
    with caplog.at_level(logging.INFO):
        assert tuned(tiny, capacity=128).pool.capacity == 70
    assert "holds 70 images instead of 128" in caplog.text


def test_the_pool_holds_a_shard_where_half_of_the_memory_does_and_else_the_worker_does_not_start(
    tiny, measured, monkeypatch
):
    """A worker that has no room for one would be ready, and never take any."""
    monkeypatch.setattr(tune_module, "memory_bytes", lambda device: 2 * 64 * 512)
    assert tuned(tiny, capacity=128).pool.capacity == 64
    monkeypatch.setattr(tune_module, "memory_bytes", lambda device: 2 * 64 * 512 - 1)
    with pytest.raises(
        ValueError,
        match=r"holds 63 images of 1x8x8, and a worker takes 64 at once; give it 0\.0 GiB or more",
    ):
        tuned(tiny, capacity=128)


def test_a_batch_that_is_kept_and_does_not_fit_any_more_is_not_used(
    tiny, monkeypatch, tmp_path: Path
):
    cache = CalibrationCache(tmp_path)
    first = tune(tiny, "ab" * 32, SHAPE, CPU, 256, "fp32", cache).calibration.batch_sizes
    step = Pool.step

    def full(pool: Pool, columns: Tensor) -> None:
        if columns.shape[1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(pool, columns)

    monkeypatch.setattr(Pool, "step", full)
    fitting = tune(tiny, "ab" * 32, SHAPE, CPU, 256, "fp32", cache).calibration.batch_sizes
    assert fitting == tuple(size for size in first if size <= 2)
    assert len(fitting) < len(first)


def test_a_batch_that_fitted_when_it_was_measured_and_does_not_now_is_not_used(
    tiny, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr(
        tune_module,
        "calibrate",
        lambda pool, T, sizes: Calibration({1: 1.0, 2: 1.5, 4: 2.0}, 2, 1, {1: 2.0, 4: 4.0}),
    )

    def full(pool: Pool, size: int) -> None:
        if size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pool, "prepare", full)
    calibration = tuned(tiny, "fp32").calibration
    assert (calibration.batch_sizes, calibration.by_fewer) == ((1, 2), {1: 2.0})


def test_where_no_batch_fits_any_more_the_start_says_so(tiny, monkeypatch):
    monkeypatch.setattr(
        tune_module, "calibrate", lambda pool, T, sizes: Calibration({1: 1.0, 2: 1.5}, threads=1)
    )

    def full(pool: Pool, size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pool, "prepare", full)
    with pytest.raises(ValueError, match="no batch fits the memory that is free on cpu"):
        tuned(tiny, "fp32")


def test_the_precision_that_was_chosen_first_stays_whatever_is_measured_later(
    tiny, monkeypatch, tmp_path: Path
):
    monkeypatch.setattr(tune_module, "precisions", lambda device: ("fp32", "bf16"))
    seconds = {"fp32": 1.0, "bf16": 2.0}
    monkeypatch.setattr(tune_module, "_prepared", lambda pool, calibration: calibration)
    monkeypatch.setattr(
        tune_module._Bench, "worth", lambda bench, precision: 1 / seconds[precision]
    )
    cache = CalibrationCache(tmp_path)
    assert tune(tiny, "ab" * 32, SHAPE, CPU, 256, "auto", cache).precision == "fp32"
    seconds["bf16"] = 0.1
    assert tune(tiny, "ab" * 32, SHAPE, CPU, 256, "auto", cache).precision == "fp32"
    assert (
        tune(
            tiny, "ab" * 32, SHAPE, CPU, 256, "auto", CalibrationCache(tmp_path / "emptied")
        ).precision
        == "bf16"
    )
