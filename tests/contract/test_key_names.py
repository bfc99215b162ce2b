"""Every key that the service and RQ write.

Processes of two versions share one server while a service is renewed.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from redis import Redis
from redis.client import PubSub

from app.main import create_app
from app.settings import ApiSettings
from models.checkpoints.catalog import Catalog
from tests.support.folders import write_model
from tests.support.golden import assert_golden
from tests.support.loaded import HeldModel
from tests.support.processes import eventually
from tests.support.receiver import receiver
from tests.support.server import serve
from tests.support.webhooks import SECRET
from worker.__main__ import build
from worker.calibration.cache import CalibrationCache
from worker.jobs.keys import job_key
from worker.results.url import open_store
from worker.settings import WorkerSettings

WITHIN_S = 60  # for what takes a moment where the machine is not busy
TYPES = {  # of a key, by what the server says has been done to it
    "hash": ("hset", "hincrby", "hdel"),
    "list": ("lpush", "rpush", "lpop", "rpop", "lrem"),
    "set": ("sadd", "srem"),
    "string": ("set",),
    "zset": ("zadd", "zincr", "zrem", "zremrangebyscore"),
    None: ("del", "expire", "expired", "persist"),
}
TYPE_BY_EVENT = {event: kind for kind, events in TYPES.items() for event in events}
END = "the end"


def plain(name: str) -> str:
    """Put placeholders where names differ from run to run, and for numbers."""
    name = re.sub(r"[0-9a-f]{64}", "<sha256>", name)
    name = re.sub(r"[0-9a-f]{32}", "<id>", name)
    return re.sub(r"\b([kp]?)\d+\b", r"\1<n>", name)


class Keys:
    """All that were ever written, however short their life: the server tells of each."""

    def __init__(self, redis: Redis, told: PubSub) -> None:
        self._redis, self._told = redis, told
        self._types: dict[str, set[str]] = defaultdict(set)
        self._fields: dict[str, set[str]] = defaultdict(set)

    def look(self) -> list[str]:
        """The names that are there now. Fields of hashes are noted."""
        names = self._redis.keys("*")
        for name in names:
            kind = self._redis.type(name).decode()
            if kind == "hash":
                fields = {plain(field.decode()) for field in self._redis.hkeys(name)}
                self._fields[plain(name.decode())] |= fields
        return sorted({plain(name.decode()) for name in names})

    def ever(self) -> dict[str, Any]:
        self._redis.set(END, 1)
        while (name := self._hear()) != END:
            assert name, "the server told of the end"
        self._redis.delete(END)
        return {name: self._described(name) for name in self._types if name != END}

    def _described(self, name: str) -> str | dict[str, list[str]]:
        (kind,) = self._types[name]
        return {"hash": sorted(self._fields[name])} if kind == "hash" else kind

    def _hear(self) -> str | None:
        message = self._told.get_message(timeout=WITHIN_S)
        if message is None:
            return None
        name = plain(message["channel"].decode().partition(":")[2])
        if kind := TYPE_BY_EVENT[message["data"].decode()]:
            self._types[name].add(kind)
        return name


@pytest.fixture
def keys(redis: Redis) -> Iterator[Keys]:
    redis.config_set("notify-keyspace-events", "KA")
    try:
        with redis.pubsub() as told:
            told.psubscribe("__keyspace@*__:*")
            assert told.get_message(timeout=WITHIN_S), "subscribed"
            yield Keys(redis, told)
    finally:
        redis.config_set("notify-keyspace-events", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny", analytic=True)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[HeldModel]:
    threads, cache = torch.get_num_threads(), CalibrationCache(WorkerSettings().cache_dir)
    yield HeldModel(Catalog.read(folder), "tiny", torch.device("cpu"), 256, "fp32", cache)
    torch.set_num_threads(threads)


@contextmanager
def working(redis: Redis, model: HeldModel, results_url: str) -> Iterator[None]:
    """A worker, as a process runs it; signed off when the block ends."""
    worker = build(redis, {"tiny": model}, "cpu", open_store(results_url))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.request_stop()
        thread.join()


class ContractService:
    """What a client and the test's hands do."""

    def __init__(self, api: httpx.Client) -> None:
        self._api = api

    def post(self, key: str = "", **request: Any) -> str:
        headers = {"Idempotency-Key": key} if key else {}
        response = self._api.post("/v1/jobs", json={"model": "tiny"} | request, headers=headers)
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def is_in(self, job: str, state: str) -> None:
        eventually(lambda: self.job(job)["state"] == state, WITHIN_S, f"{job} is {state}")

    def job(self, job: str) -> dict[str, Any]:
        return self._api.get(f"/v1/jobs/{job}").json()

    def is_told(self, job: str) -> bool:
        return self.job(job)["webhook"]["state"] == "delivered"

    def shows(self, job: str) -> bool:
        return self._api.get(f"/v1/jobs/{job}/images/0/preview").status_code == 200

    def cancel(self, job: str) -> None:
        assert self._api.post(f"/v1/jobs/{job}/cancel").is_success

    def delete(self, job: str) -> None:
        assert self._api.delete(f"/v1/jobs/{job}").status_code == 204


@contextmanager
def serving(settings: ApiSettings) -> Iterator[ContractService]:
    wait = {"timeout": WITHIN_S}
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, **wait) as client:
        yield ContractService(client)


@pytest.mark.parametrize("golden", ["keys.json", "keys-with-results-store.json"])
def test_the_keys_of_jobs_from_post_to_delete_are_the_golden_ones(
    redis, valkey_url, keys, folder, model, tmp_path, monkeypatch, golden
):
    results_url = tmp_path.as_uri() if "store" in golden else ""
    webhooks = {"webhook_secret": SECRET, "webhook_networks": "127.0.0.1"}
    where = {"redis_url": valkey_url, "models_dir": folder, "results_url": results_url}
    there = {}
    model.let(0)
    with receiver() as hook, serving(ApiSettings(**where, **webhooks)) as service:
        recipe = {"count": 66, "sampler": "ddpm", "variance": "analytic", "steps": 20}
        asked = recipe | {"webhook": f"http://127.0.0.1:{hook.port}/"}
        job = service.post(key="once", **asked)  # in two shards, the second of which is bulk
        assert service.post(key="once", **asked) == job
        there["posted"] = keys.look()
        with working(redis, model, results_url):
            service.is_in(job, "running")
            model.let(3)
            eventually(lambda: is_saved(redis, job), WITHIN_S, "chains are saved")
            eventually(lambda: service.shows(job), WITHIN_S, "a preview is shown")
            keys.look()
            cancelled, deleted = service.post(), service.post(sampler="ddim")
            for other in (cancelled, deleted):
                service.is_in(other, "running")
            keys.look()
            service.cancel(cancelled)
            service.delete(deleted)
            model.let(100_000)
            service.is_in(job, "finished")
            eventually(lambda: service.is_told(job), WITHIN_S, "its webhook is delivered")
            monkeypatch.setattr(model.engine.pool, "network", lambda x, t: x * torch.nan)
            failed = service.post()
            service.is_in(failed, "failed")
            eventually(lambda: not redis.keys("rq:job:*"), WITHIN_S, "the worker holds nothing")
        there["ended"] = keys.look()
        for other in (job, cancelled, failed):
            service.delete(other)
        there["deleted"] = keys.look()
    assert_golden(golden, {"ever": keys.ever()} | there)


def is_saved(redis: Redis, job: str) -> bool:
    """Chains of both shards have taken a step, and those of the first are kept."""
    return {b"p0", b"p1", b"k0"} <= set(redis.hkeys(job_key(job)))
