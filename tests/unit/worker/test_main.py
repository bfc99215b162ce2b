"""A worker's start, and the objects that it consists of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from redis import Redis
from safetensors.torch import load_file, save_file

from models.checkpoints import diffusers_format
from tests.support.folders import write_model
from worker.__main__ import build, load_models, main
from worker.process.loaded_model import LoadedModel
from worker.results.in_redis import InRedis
from worker.results.url import open_store
from worker.settings import WorkerSettings


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "unet" / diffusers_format.WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(folder: Path) -> None:
    path = folder / "unet" / diffusers_format.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "unet" / diffusers_format.WEIGHTS).rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


def other_weights(folder: Path) -> None:
    spoil(folder, lambda tensors: tensors["conv_out.bias"].add_(1))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            truncate,
            ["unet/diffusion_pytorch_model.safetensors has sha256", "its card says", "restore"],
        ),
        (
            other_weights,
            ["unet/diffusion_pytorch_model.safetensors has sha256", "its card says", "restore"],
        ),
        (pickle_only, ["pickled weights are not read", "safe_serialization=True"]),
    ],
)
def test_a_checkpoint_unlike_its_card_ends_the_worker_with_file_and_remedy(
    tmp_path, monkeypatch, caplog, fault, says
):
    write_model(tmp_path, "tiny")
    fault(tmp_path / "tiny")
    monkeypatch.setenv("DDPM_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("DDPM_MODELS", "tiny")
    monkeypatch.setenv("DDPM_DEVICE", "cpu")
    assert main() == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / "tiny") in line
    assert [part for part in says if part not in line] == []


def served(root: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, LoadedModel]:
    """Return the models of the folder that a worker on the CPU would serve."""
    monkeypatch.setattr("worker.__main__.SHIPPED", root / "none")
    settings = WorkerSettings(models_dir=root, models=names)
    return load_models(settings, torch.device("cpu"))


@pytest.mark.parametrize(
    "fault", [truncate, pickle_only, lambda f: (f / "card.json").write_text("{")]
)
def test_a_bad_model_keeps_a_worker_from_no_other(tmp_path, monkeypatch, caplog, fault):
    for name in ("bad", "tiny"):
        write_model(tmp_path, name)
    fault(tmp_path / "bad")
    assert set(served(tmp_path, monkeypatch)) == {"tiny"}
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert str(tmp_path / "bad") in line
    assert "serves its other models only" in line


def test_a_model_that_is_too_large_keeps_a_worker_from_no_other(tmp_path, monkeypatch, caplog):
    for name in ("large", "tiny"):
        write_model(tmp_path, name)
    make = LoadedModel.__init__

    def make_if_small(model, catalog, name, *rest):
        if name == "large":
            raise torch.OutOfMemoryError("CUDA out of memory")
        make(model, catalog, name, *rest)

    monkeypatch.setattr(LoadedModel, "__init__", make_if_small)
    assert set(served(tmp_path, monkeypatch)) == {"tiny"}
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith("the model 'large' does not fit the memory of cpu")
    with pytest.raises(ValueError, match="the model 'large' does not fit"):
        served(tmp_path, monkeypatch, "large")


def test_a_wrong_url_is_reported_without_its_password(monkeypatch, caplog):
    monkeypatch.setenv("DDPM_REDIS_URL", "valkey://:hunter2@store:6379/0")
    assert main() == 1
    assert "redis_url" in caplog.text
    assert "hunter2" not in caplog.text


def task_names(store) -> list[str]:
    """Return the names of the background tasks, of a worker whose Redis is away."""
    worker = build(Redis(port=1), {}, "cpu", store)
    return [task.name for task in worker.parts.tasks]


def test_a_worker_cleans_up_only_results_that_lie_outside_redis(tmp_path):
    in_redis, in_files = task_names(InRedis()), task_names(open_store(tmp_path.as_uri()))
    assert in_files == [*in_redis, "results cleanup"]
    assert len(set(in_files)) == len(in_files)
