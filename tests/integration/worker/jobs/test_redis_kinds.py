"""The same service on Valkey and on Redis 7.0.

Both are open, have a password, have a user of few rights, or speak TLS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.loaded import load_tiny
from tests.support.processes import ROOT, eventually
from tests.support.server import serve
from tests.support.stores import KINDS, USER_RULES, NoSuchServer, running
from worker.__main__ import build, connect
from worker.jobs.domain import Shard
from worker.jobs.keys import LEASES, rotation_name
from worker.jobs.shard_queue import reap
from worker.process.job_writer import JobWriter, Save
from worker.process.loaded_model import LoadedModel
from worker.process.shard_leases import Lease, ShardLeases
from worker.results.in_redis import InRedis

pytestmark = pytest.mark.redis
QUEUE = rotation_name("interactive", "tiny")


@pytest.fixture(
    scope="module",
    params=[(server, kind) for server in ("valkey", "redis") for kind in KINDS],
    ids="-".join,
)
def store_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    server, kind = request.param
    with ExitStack() as stack:
        try:
            url = stack.enter_context(running(server, kind, tmp_path_factory.mktemp("store")))
        except NoSuchServer as absent:
            pytest.skip(str(absent))
        yield url


@pytest.fixture
def redis(store_url: str) -> Iterator[Redis]:
    with connect(store_url) as client:
        yield client


@pytest.fixture
def api(store_url: str, models_dir: Path) -> Iterator[httpx.Client]:
    app = create_app(ApiSettings(redis_url=store_url, models_dir=models_dir))
    with serve(app) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


def submit(api: httpx.Client, **request: Any) -> str:
    response = api.post("/v1/jobs", json={"model": "tiny", "steps": 5} | request)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def take(shards: ShardLeases, results: JobWriter) -> Lease:
    lease = shards.take([QUEUE])
    assert lease is not None
    assert results.start(lease.shard, lease.attempt)
    return lease


def test_a_shard_that_was_lost_is_continued_from_its_snapshot_and_finished(
    api: httpx.Client, redis: Redis
) -> None:
    job = submit(api, count=2)
    shards, results = ShardLeases(redis, [QUEUE]), JobWriter(redis, InRedis())
    shards.heartbeat()
    lost = take(shards, results)
    assert api.get(f"/v1/jobs/{job}").json()["state"] == "running"
    assert results.progress([(lost.shard, 3, 6)]) == [True]
    assert results.save([Save(b"chains", [(lost.shard, 6)])]) == {lost.shard.id}

    redis.zadd(LEASES, {lost.execution.composite_key: 0})
    assert reap(redis) == [(lost.shard.id, "requeued")]
    assert shards.heartbeat() == [lost]
    again = take(shards, results)
    assert results.saved(again.shard) == b"chains"
    assert results.publish(again.shard, [(0, b"first"), (1, b"second")])
    assert shards.finish_all([lost, again]) == ["lost", "finished"]

    assert api.get(f"/v1/jobs/{job}").json()["state"] == "finished"
    assert [api.get(f"/v1/jobs/{job}/images/{index}").content for index in (0, 1)] == [
        b"first",
        b"second",
    ]
    shards.close()
    assert not keys_of(redis, again.shard)


def test_a_running_job_is_cancelled_and_a_waiting_job_is_deleted(
    api: httpx.Client, redis: Redis
) -> None:
    runs, waits = submit(api), submit(api, count=100)
    shards, results = ShardLeases(redis, [QUEUE]), JobWriter(redis, InRedis())
    shards.heartbeat()
    lease = take(shards, results)
    assert api.post(f"/v1/jobs/{runs}/cancel").json()["state"] == "cancelled"
    assert shards.heartbeat() == [lease], "the heartbeat tells of it"
    assert results.progress([(lease.shard, 1, 1)]) == [False]
    assert shards.finish(lease)
    assert api.delete(f"/v1/jobs/{waits}").status_code == 204
    assert shards.take([QUEUE, rotation_name("bulk", "tiny")]) is None
    shards.close()
    assert not keys_of(redis, lease.shard)
    assert not any(waits in key.decode() for key in redis.scan_iter())


def keys_of(redis: Redis, shard: Shard) -> list[bytes]:
    return [key for key in redis.scan_iter() if shard.id in key.decode()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


def test_an_image_is_sampled(
    store_url: str, model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, "tiny")
    worker = build(connect(store_url), {"tiny": model}, "cpu", InRedis())
    thread = Thread(target=worker.run)
    app = create_app(ApiSettings(redis_url=store_url, models_dir=tmp_path))
    with serve(app) as url, httpx.Client(base_url=url, timeout=10) as api:
        thread.start()
        try:
            job = f"/v1/jobs/{submit(api, count=2)}"
            eventually(
                lambda: api.get(job).json()["state"] == "finished", 30, "the job is finished"
            )
            assert api.get(f"{job}/images/1").content.startswith(b"\x89PNG")
        finally:
            worker.request_stop()
            thread.join()
    ours = [record for record in caplog.records if record.name.startswith("worker")]
    assert [record.message for record in ours if record.levelname != "INFO"] == []


def test_the_how_to_gives_a_user_the_rights_that_are_tested() -> None:
    how_to = (ROOT / "docs" / "how-to" / "use-your-own-redis.md").read_text()
    assert f"ACL SETUSER ddpm on >PASSWORD {USER_RULES}\n" in how_to
