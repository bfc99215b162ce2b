"""The API in trouble: Redis is silent, gone, paused or full, or the API has a bug."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem, problem_within
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.worker import IdleWorker


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that takes connections and never answers, as a stalled Redis does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


JOB = f"/v1/jobs/{'0' * 32}"
REQUESTS: list[Callable[[httpx.Client], httpx.Response]] = [
    lambda client: client.post("/v1/jobs", json={"model": "tiny"}),
    lambda client: client.get(JOB, params={"wait": 20}),
    lambda client: client.post(f"{JOB}/cancel"),
    lambda client: client.get("/v1/jobs"),
    lambda client: client.get("/readyz"),
]


def _assert_503_within_2_s(redis_url: str, models_dir: Path) -> None:
    app = create_app(ApiSettings(redis_url=redis_url, models_dir=models_dir))
    with serve(app, patient=False) as url, httpx.Client(base_url=url, timeout=10) as client:
        for request in REQUESTS:
            response = problem_within(2, 503, partial(request, client))
            assert int(response.headers["retry-after"]) > 0
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_a_redis_that_stalls_is_a_503_within_2_s(silent: str, models_dir: Path) -> None:
    _assert_503_within_2_s(silent, models_dir)


def test_a_redis_that_is_gone_is_a_503_within_2_s(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    _assert_503_within_2_s(f"redis://127.0.0.1:{port}/0", models_dir)


def test_a_redis_that_pauses_is_a_503_and_then_well_again(
    settings: ApiSettings, redis: Redis
) -> None:
    with serve(create_app(settings), patient=False) as url:

        def post() -> httpx.Response:
            return httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}, timeout=60)

        redis.client_pause(60_000, all=False)
        try:
            problem(post(), 503)
        finally:
            redis.client_unpause()
        eventually(lambda: post().status_code == 202, 10, "a job is accepted again")


@pytest.fixture
def full(redis: Redis) -> Iterator[None]:
    """Have the server out of memory."""
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@pytest.mark.usefixtures("full")
def test_a_redis_that_is_full_is_a_507_and_nothing_is_written(
    api: httpx.Client, redis: Redis
) -> None:
    problem(api.post("/v1/jobs", json={"model": "tiny"}), 507)
    assert redis.keys("*") == []


def test_a_redis_that_is_full_still_shows_jobs_and_deletes_them(
    api: httpx.Client, redis: Redis, worker: IdleWorker
) -> None:
    id = api.post("/v1/jobs", json={"model": "tiny", "count": 70}).json()["id"]
    job = f"/v1/jobs/{id}"
    redis.hset(f"rq:job:{id}-1", "status", "started")
    redis.delete("rq:queue:bulk:tiny:local", "ddpm:rotation:bulk:tiny")
    redis.config_set("maxmemory", 1)
    try:
        problem(api.post(f"{job}/cancel"), 507)
        assert api.get(job).json()["state"] == "queued"
        assert redis.llen("rq:queue:interactive:tiny:local") == 1, "cancelled in part"
        assert api.delete(job).status_code == 204
    finally:
        redis.config_set("maxmemory", 0)
    assert redis.keys("ddpm:*") == []


def test_a_bug_is_a_500_that_shows_nothing_secret(
    settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("app.jobs.queries.JobQueries.page", broken)
    with serve(create_app(settings)) as url:
        response = httpx.get(f"{url}/v1/jobs")
    assert "bug" in problem(response, 500)["detail"]
    assert "secret" not in response.text
