"""A worker whose results store takes nothing: it parts with its work until the store is back."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from redis import Redis

from tests.support.clock import SimulatedClock
from tests.support.jobs import state_of
from tests.support.loaded import load_tiny
from tests.support.parts import build_worker, handle_all, post, take
from worker.jobs.shard_queue import MAX_LOSSES
from worker.process.loaded_model import LoadedModel
from worker.results.in_redis import InRedis
from worker.results.store import StoreFault
from worker.results.url import open_store
from worker.results.watched_store import HANGS_S, REFUSES_S, WatchedStore


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


def test_a_worker_that_cannot_store_its_pictures_gives_its_work_back_until_it_can(
    redis: Redis, api: httpx.Client, model: LoadedModel, tmp_path: Path
) -> None:
    folder, clock = tmp_path / "results", SimulatedClock()
    folder.write_text("no folder")
    worker = build_worker(redis, model, open_store(folder.as_uri()), clock=clock)
    parts = worker.parts
    finished = post(redis, model, job="a" * 32, steps=2)
    running = post(redis, model, job="b" * 32, steps=1000)
    take(worker)
    while len(worker.active) > 1:
        worker.run_once()
    with pytest.raises(StoreFault):
        parts.sender.run_once()
    clock.pass_s(REFUSES_S - 1)
    parts.heartbeat.run_once()
    assert len(parts.shards.leases) == 2, "it may be back in a moment"
    assert api.get("/readyz").is_success

    clock.pass_s(1)
    parts.heartbeat.run_once()
    handle_all(worker)
    assert not worker.active
    waits = redis.lrange(f"rq:queue:{running.queue}", 0, -1)
    assert waits == [finished.id.encode(), running.id.encode()]
    left = {redis.hget(f"rq:job:{shard.id}", "retries_left") for shard in (finished, running)}
    assert left == {str(MAX_LOSSES).encode()}
    assert parts.intake.wanted() == {}
    refused = api.get("/readyz")
    assert refused.status_code == 503
    assert "the results store has taken no picture for 30 s" in refused.json()["detail"]
    assert api.post("/v1/jobs", json={"model": "tiny"}).json()["queue"]["eta_s"] is None

    folder.unlink()
    parts.sender.run_once()
    parts.heartbeat.run_once()
    assert state_of(redis, finished.job) == "finished", "its pictures were kept"
    assert api.get("/readyz").json()["workers"][0]["fault"] == ""
    assert parts.intake.wanted()


def test_a_store_is_tried_out_until_it_takes_files_again(tmp_path: Path) -> None:
    """Others may have drawn all that this worker had to store."""
    folder, clock = tmp_path / "results", SimulatedClock()
    folder.write_text("no folder")
    store = WatchedStore(open_store(folder.as_uri()), clock)
    store.try_out("worker")
    with pytest.raises(StoreFault):
        store.put("job", [(0, b"a picture")])
    clock.pass_s(REFUSES_S)
    with pytest.raises(StoreFault):
        store.try_out("worker")
    assert store.fault
    folder.unlink()
    store.try_out("worker")
    assert not store.fault
    assert not [path for path in folder.rglob("*") if path.is_file()], "nothing is left of it"


class _Hangs(InRedis):
    """Takes pictures when a test lets it."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()

    def put(self, *args: object) -> list[bytes]:
        self.asked.set()
        self.go_on.wait()
        return []


def test_a_store_that_does_not_answer_is_out_of_order_too() -> None:
    hangs, clock = _Hangs(), SimulatedClock()
    store = WatchedStore(hangs, clock)
    thread = threading.Thread(target=store.put, args=("job", [(0, b"a picture")]))
    thread.start()
    hangs.asked.wait()
    clock.pass_s(HANGS_S - 1)
    assert not store.fault
    clock.pass_s(1)
    assert store.fault == "the results store has not answered for 120 s"
    hangs.go_on.set()
    thread.join()
    assert not store.fault
