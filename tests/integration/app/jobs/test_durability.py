"""Jobs that were answered with 202 outlive the job store.

It is the embedded Valkey, killed with SIGKILL and started again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis import exceptions as redis_errors

from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.valkey import OwnValkey

KEY = {"Idempotency-Key": "k"}
pytestmark = pytest.mark.redis


@pytest.fixture
def started(tmp_path: Path) -> Iterator[OwnValkey]:
    server = OwnValkey(tmp_path)
    server.start()
    yield server
    server.kill()


def accepted(api: httpx.Client, **request: Any) -> str:
    """Post a job until the API has found the server, and return the job's id."""
    answers: list[httpx.Response] = []

    def post() -> bool:
        answers.append(api.post("/v1/jobs", **request))
        return answers[-1].status_code == 202

    eventually(post, 10, "the job is accepted")
    return str(answers[-1].json()["id"])


@pytest.mark.slow
def test_a_job_is_there_after_202_and_an_immediate_kill_100_times_out_of_100(
    started: OwnValkey, models_dir: Path
):
    posted: list[str] = []
    with (
        serve(create_app(ApiSettings(redis_url=started.url, models_dir=models_dir))) as url,
        httpx.Client(base_url=url, timeout=10) as api,
        Redis.from_url(started.url) as redis,
    ):
        for turn in range(100):
            request = {
                "json": {"model": "tiny", "count": 1 + 64 * (turn % 3)},
                "headers": {"Idempotency-Key": f"turn-{turn}"},
            }
            posted.append(accepted(api, **request))
            started.kill()
            started.start()
            state = redis.hget(f"ddpm:job:{posted[-1]}", "state")
            assert state == b"queued", f"lost in turn {turn}"
            assert accepted(api, **request) == posted[-1], "the same post again finds it"
        queues = redis.keys("rq:queue:*")
        waiting = {id.decode() for queue in queues for id in redis.lrange(queue, 0, -1)}
        assert waiting == {
            f"{job}-{shard}" for turn, job in enumerate(posted) for shard in range(1 + turn % 3)
        }


@pytest.fixture
def api_before(
    tmp_path: Path, models_dir: Path, request: pytest.FixtureRequest
) -> Iterator[httpx.Client]:
    """A client of an API before a server that has the options of the test's parameter."""
    server = OwnValkey(tmp_path, **request.param)
    server.start()
    app = create_app(ApiSettings(redis_url=server.url, models_dir=models_dir))
    with serve(app) as url, httpx.Client(base_url=url, timeout=10) as api:
        yield api
    server.kill()


CANNOT_CONFIRM = [{"appendonly": "no"}, {"appendfsync": "no"}, {"rename-command": "WAITAOF hidden"}]


@pytest.mark.parametrize(
    "api_before", CANNOT_CONFIRM, ids=["no file", "never synced", "no WAITAOF"], indirect=True
)
def test_a_server_that_cannot_confirm_writes_is_trusted_and_the_log_says_so_once(
    api_before: httpx.Client, caplog
):
    with caplog.at_level(logging.WARNING, "app.jobs.durability"):
        answers = [post(api_before).status_code for _ in range(3)]
    assert answers == [202] * 3
    [warning] = [record for record in caplog.records if record.name == "app.jobs.durability"]
    assert "not known to be on disk" in warning.message


def post(api: httpx.Client, **headers: str) -> httpx.Response:
    return api.post("/v1/jobs", json={"model": "tiny"}, headers=headers)


@pytest.mark.parametrize("api_before", [{}], indirect=True)
def test_a_slow_disk_is_a_503_and_only_an_idempotency_key_finds_the_job(
    api_before: httpx.Client, monkeypatch
):
    async def not_yet(*_: object) -> bool:
        return False

    with monkeypatch.context() as slow:
        slow.setattr("app.jobs.durability.DurabilityCheck.confirmed", not_yet)
        refused = post(api_before)
        keyed = post(api_before, **KEY)
    assert problem(refused, 503)["type"].endswith("not-on-disk")
    assert (keyed.status_code, keyed.headers["retry-after"]) == (503, "2")
    [there] = api_before.get("/v1/jobs").json()["jobs"]
    assert post(api_before, **KEY).json()["id"] == there["id"]


@pytest.mark.parametrize("api_before", [{"appendfsync": "no"}], indirect=True)
def test_a_store_that_falls_silent_before_it_says_what_it_syncs_leaves_no_job(
    api_before: httpx.Client, monkeypatch
):
    async def silent(*_: object) -> None:
        raise redis_errors.TimeoutError

    monkeypatch.setattr("redis.asyncio.Redis.config_get", silent)
    refused = problem(post(api_before), 503)
    assert refused["type"].endswith("not-on-disk")
    assert "may not have been accepted; send it again" in refused["detail"]
    assert api_before.get("/v1/jobs").json()["jobs"] == []
