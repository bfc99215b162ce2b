"""A worker's start, and the objects that it consists of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from redis import Redis
from safetensors.torch import load_file, save_file

from models.checkpoints import layout
from tests.support.folders import write_model
from worker.__main__ import build, load_models, main
from worker.process.loaded_model import LoadedModel
from worker.results.in_redis import InRedis
from worker.results.url import open_store
from worker.settings import WorkerSettings


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "unet" / layout.WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(folder: Path) -> None:
    path = folder / "unet" / layout.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "unet" / layout.WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")


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
        (pickle_only, ["holds no diffusion_pytorch_model.safetensors", "`ddpm models add`"]),
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


def test_a_setting_limits_the_threads_of_every_model(tmp_path, monkeypatch):
    for name in ("one", "two"):
        write_model(tmp_path, name)
    monkeypatch.setattr("worker.__main__.SHIPPED", tmp_path / "none")
    monkeypatch.setattr("worker.backends.host.available_cores", lambda: 2)
    monkeypatch.setenv("DDPM_THREADS", "1")
    models = load_models(WorkerSettings(models_dir=tmp_path), torch.device("cpu"))
    assert [model.calibration.threads for model in models.values()] == [1, 1]


def enlarge(folder: Path, **shape: int) -> None:
    """Let the card say that the model makes images of this shape."""
    path = folder / "card.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"shape": shape}))


def test_a_model_that_needs_a_results_store_keeps_a_worker_from_no_other(
    tmp_path, monkeypatch, caplog
):
    for name in ("large", "tiny"):
        write_model(tmp_path, name)
    enlarge(tmp_path / "large", channels=3, height=512, width=512)
    assert set(served(tmp_path, monkeypatch)) == {"tiny"}
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith(
        "the model 'large' needs a results store: the chains of 64 images of 3x512x512 take 403 MB,"
        " and Redis takes 150 MB at most; set DDPM_RESULTS_URL"
    )
    assert "serves its other models only" in line


def test_a_model_of_large_images_is_served_where_there_is_a_results_store(tmp_path, monkeypatch):
    write_model(tmp_path, "large")
    enlarge(tmp_path / "large", channels=3, height=512, width=512)
    monkeypatch.setenv("DDPM_RESULTS_URL", (tmp_path / "pictures").as_uri())
    monkeypatch.setattr(LoadedModel, "__init__", lambda *_: None)
    assert set(served(tmp_path, monkeypatch)) == {"large"}


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
    assert set(in_files) - set(in_redis) == {"results store", "results cleanup"}
    assert set(in_redis) < set(in_files)
    assert len(set(in_files)) == len(in_files)
