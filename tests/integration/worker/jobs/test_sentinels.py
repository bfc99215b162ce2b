"""A service whose job store is watched by Sentinels, while they fail over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.main import create_app
from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.loaded import load_tiny
from tests.support.processes import eventually
from tests.support.sentinels import WatchedPrimary, watched
from tests.support.server import serve
from tests.support.stores import NoSuchServer
from worker.__main__ import build, connect
from worker.jobs.keys import job_key
from worker.results.in_redis import InRedis

pytestmark = pytest.mark.redis


@pytest.fixture(params=["valkey", "redis"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WatchedPrimary]:
    try:
        with watched(request.param, tmp_path) as servers:
            yield servers
    except NoSuchServer as absent:
        pytest.skip(str(absent))


@contextmanager
def service(servers: WatchedPrimary, folder: Path) -> Iterator[httpx.Client]:
    """An API and a worker, in threads of this process."""
    write_model(folder, "tiny")
    worker = build(connect(servers.url), {"tiny": load_tiny(folder)}, "cpu", InRedis())
    thread = threading.Thread(target=worker.run)
    app = create_app(ApiSettings(redis_url=servers.url, models_dir=folder))
    with serve(app) as url, httpx.Client(base_url=url, timeout=20) as api:
        thread.start()
        try:
            yield api
        finally:
            worker.request_stop()
            thread.join()


class Client:
    """Posts jobs one after the other, and repeats each until it is accepted, as clients do."""

    def __init__(self, api: httpx.Client) -> None:
        self.accepted: list[str] = []
        self.accepted_at = 0.0
        self.refused: set[int] = set()
        self._api = api
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def has_one_since(self, began: float) -> bool:
        return self.accepted_at > began

    def _run(self) -> None:
        # Many are posted, and those of before the failover have to get on beside them.
        request = {"model": "tiny", "count": 2, "steps": 10}
        while not self._over.is_set():
            headers = {"Idempotency-Key": uuid4().hex}
            answer = self._api.post("/v1/jobs", json=request, headers=headers)
            while answer.status_code != 202 and not self._over.is_set():
                self.refused.add(answer.status_code)
                self._over.wait(0.1)
                answer = self._api.post("/v1/jobs", json=request, headers=headers)
            if answer.status_code == 202:
                self.accepted.append(answer.json()["id"])
                self.accepted_at = time.monotonic()
            self._over.wait(0.1)


def test_a_failover_by_sentinels_loses_no_job_and_no_attempt(servers, tmp_path):
    with service(servers, tmp_path / "models") as api:
        old = servers.primary
        before = [post(api) for _ in range(4)]
        eventually(lambda: state(api, before[0]) != "queued", 60, "the worker runs a job")
        # What the replica lacks is lost with the primary, whatever a client does.
        assert servers.client(old).wait(1, 10_000) == 1
        with Client(api) as client:
            eventually(lambda: client.accepted, 30, "jobs are accepted")
            servers.kill(old)
            eventually(lambda: servers.primary != old, 60, "the Sentinels name another primary")
            named_at = time.monotonic()
            eventually(lambda: client.has_one_since(named_at), 60, "jobs are accepted again")
            servers.start_again(old)
            back_at = time.monotonic()
            eventually(lambda: client.has_one_since(back_at), 60, "and when the old one is back")
        assert client.refused <= {503}
        after = [post(api, steps=20) for _ in range(2)]
        for job in before + after:
            eventually(lambda job=job: state(api, job) == "finished", 120, f"{job} is finished")
        new = servers.client(servers.primary)
        attempts = {new.hget(job_key(job), "attempts") for job in before + after}
        assert attempts == {b"1"}


def post(api: httpx.Client, steps: int = 300) -> str:
    answer = api.post("/v1/jobs", json={"model": "tiny", "count": 8, "steps": steps})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def state(api: httpx.Client, job: str) -> str:
    return str(api.get(f"/v1/jobs/{job}").json().get("state"))
