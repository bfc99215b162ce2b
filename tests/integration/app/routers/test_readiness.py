from __future__ import annotations

import threading

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.worker import IdleWorker
from worker.jobs.keys import STARTING
from worker.jobs.worker_registry import starting


def test_readiness_tells_a_worker_that_starts_from_none(
    api: httpx.Client, redis: Redis, worker: IdleWorker
) -> None:
    assert problem(api.get("/readyz"), 503)["type"].endswith(":no-worker")
    with starting(redis):
        eventually(lambda: redis.exists(STARTING), 20, "a worker says that it starts")
        assert "first start" in problem(api.get("/readyz"), 503)["detail"]
    assert 0 < redis.ttl(STARTING) <= 30
    worker.announce()
    assert api.get("/readyz").status_code == 200


def test_a_worker_that_has_started_no_longer_says_so(redis: Redis) -> None:
    with starting(redis):
        (thread,) = [each for each in threading.enumerate() if each.name == "starting"]
    thread.join(20)
    assert not thread.is_alive()


def test_a_process_without_one_of_its_loops_is_not_healthy(
    settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("worker.jobs.reaper.Reaper.run_once", broken)
    with serve(create_app(settings)) as url:

        def is_ill() -> bool:
            return httpx.get(f"{url}/healthz").status_code == 500

        eventually(is_ill, 20, "the process says that it is ill")
        told = problem(httpx.get(f"{url}/healthz"), 500)
        assert told["type"].endswith(":loop-ended")
        assert "ReaperTask" in told["detail"]
        assert httpx.get(f"{url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("supervisor", "remedy"),
    [
        ("none", "`ddpm worker`"),
        ("up", "its log says why"),
        ("compose", "`docker compose up -d worker`"),
        ("kubernetes", "`kubectl get pods"),
        ("systemd", "`systemctl start ddpm-worker@0`"),
    ],
)
def test_readiness_names_the_remedy_of_what_runs_the_service(
    settings: ApiSettings, redis: Redis, supervisor: str, remedy: str
) -> None:
    started = ApiSettings(**settings.model_dump() | {"supervisor": supervisor})
    with serve(create_app(started)) as url:
        assert remedy in problem(httpx.get(f"{url}/readyz"), 503)["detail"]
