"""A model that is added while API and worker run: both take it up, and its images are the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from redis import Redis

from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.loaded import load_tiny
from tests.support.parts import handle_all, run_to_the_end, take
from tests.support.server import create_fresh_app, serve
from worker.__main__ import OfferedModels, build
from worker.process.loop import WorkerLoop
from worker.process.watchdog import HUNG_S, LOAD_S
from worker.results.in_redis import InRedis
from worker.settings import WorkerSettings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "tiny")
    return tmp_path / "models"


@pytest.fixture
def api(valkey_url: str, root: Path) -> Iterator[httpx.Client]:
    app = create_fresh_app(ApiSettings(redis_url=valkey_url, models_dir=root))
    with serve(app) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def worker_of(redis: Redis, root: Path, models: tuple[str, ...] = ()) -> WorkerLoop:
    # one precision, as what is measured on a busy machine may differ from model to model
    settings = WorkerSettings(models_dir=root, models=models, precision="fp32")
    offered = OfferedModels(settings, torch.device("cpu"))
    worker = build(
        redis, {"tiny": load_tiny(root, precision="fp32")}, "cpu", InRedis(), offered=offered
    )
    worker.parts.shards.heartbeat()
    return worker


def poll(worker: WorkerLoop) -> None:
    """Let the worker look at the catalog, and the loop handle what it found."""
    task = next(task for task in worker.parts.tasks if task.name == "models")
    # the catalog looks once a second
    began = time.monotonic()
    while worker.parts.messages.empty() and time.monotonic() - began < 5:
        task.run_once()
        time.sleep(0.05)
    handle_all(worker)


def post(api: httpx.Client, model: str) -> httpx.Response:
    return api.post("/v1/jobs", json={"model": model, "seed": 1, "steps": 4})


def accepted(api: httpx.Client, model: str) -> str:
    """Post a job until the API has seen the model; return the job's address."""
    began = time.monotonic()
    while (answer := post(api, model)).status_code == 422 and time.monotonic() - began < 5:
        time.sleep(0.05)
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"]


def test_a_model_that_is_added_is_served_without_a_restart(redis, root, api):
    worker = worker_of(redis, root)
    assert post(api, "newcomer").status_code == 422
    assert "newcomer" not in api.get("/v1/models").text
    write_model(root, "newcomer")
    job = accepted(api, "newcomer")
    assert "newcomer" in api.get("/v1/models").text
    poll(worker)
    assert set(worker.models) == {"tiny", "newcomer"}
    take(worker)
    run_to_the_end(worker)
    assert api.get(job).json()["state"] == "finished"
    again = accepted(api, "tiny")
    take(worker)
    run_to_the_end(worker)
    late, tiny = (api.get(f"{at}/images/0").content for at in (job, again))
    # the two are one network, and a picture's recipe has its model's name
    assert (len(late) > 100, late == tiny) == (True, False)
    assert worker.models["newcomer"].fingerprint == worker.models["tiny"].fingerprint


def test_a_model_that_cannot_be_loaded_ends_no_worker(redis, root, caplog):
    worker = worker_of(redis, root)
    write_model(root, "newcomer")
    (root / "newcomer" / "unet" / "config.json").write_text("{")
    poll(worker)
    assert set(worker.models) == {"tiny"}
    assert str(root / "newcomer") in caplog.text


def test_a_worker_of_named_models_takes_up_no_others(redis, root):
    worker = worker_of(redis, root, models=("tiny",))
    write_model(root, "newcomer")
    task = next(task for task in worker.parts.tasks if task.name == "models")
    began = time.monotonic()
    while time.monotonic() - began < 1.2:
        task.run_once()
        time.sleep(0.1)
    assert worker.parts.messages.empty()


def test_the_watchdog_gives_a_model_that_loads_more_time(redis, root):
    watchdog = worker_of(redis, root).parts.watchdog
    idle_s = watchdog.allowed_s
    watchdog.note_load()
    assert watchdog.allowed_s - idle_s == LOAD_S - HUNG_S
    watchdog.note_turn()
    assert watchdog.allowed_s == idle_s
