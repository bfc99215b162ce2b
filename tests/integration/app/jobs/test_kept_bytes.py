"""The bound on the bytes of an owner's images: exact, however jobs end and go."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.access.api_keys import new_key
from app.settings import ApiSettings
from models.checkpoints.catalog import Catalog
from tests.support.problems import problem
from tests.support.server import create_fresh_app, serve
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import KEPT, KEPT_BY_OWNER, KEPT_UNTIL, job_key
from worker.jobs.reaper import Reaper
from worker.results.url import open_store

JOB = {"model": "tiny", "count": 4, "steps": 10}
MOST = 1_000_000
Serving = Callable[..., httpx.Client]


@pytest.fixture
def serving(settings: ApiSettings, redis: Redis) -> Iterator[Serving]:
    """`serving(results_ttl_s=1)`: a client of an API that lets an owner keep MOST bytes."""
    with ExitStack() as stack:

        def serving(**changed: Any) -> httpx.Client:
            chosen = settings.model_dump() | {"max_kept_bytes_per_key": MOST} | changed
            url = stack.enter_context(serve(create_fresh_app(ApiSettings(**chosen))))
            return stack.enter_context(httpx.Client(base_url=url, timeout=60))

        yield serving


@pytest.fixture
def image_bytes(models_dir: Path) -> int:
    """What an image of a job may take at most."""
    return Catalog.read(models_dir)["tiny"].png_bytes_at_most


def kept(redis: Redis) -> dict[str, int]:
    """Return the bytes by owner, which agree with those of jobs."""
    sums: dict[str, int] = {}
    for entry in redis.hvals(KEPT):
        size, owner = entry.decode().split()
        sums[owner] = sums.get(owner, 0) + int(size)
    assert sums == {
        owner.decode(): int(size) for owner, size in redis.hgetall(KEPT_BY_OWNER).items()
    }
    assert set(redis.hkeys(KEPT)) == set(redis.zrange(KEPT_UNTIL, 0, -1))
    return sums


def sizes(indices: range) -> int:
    return sum(len(png_of(index)) for index in indices)


def posted(client: httpx.Client, **changed: Any) -> str:
    answer = client.post("/v1/jobs", json=JOB | changed)
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


def test_an_open_job_counts_as_what_it_may_take_and_an_ended_one_as_what_it_takes(
    serving: Serving, redis: Redis, worker: IdleWorker, image_bytes: int
) -> None:
    api = serving()
    finished, cancelled, failed = (posted(api) for _ in range(2)), posted(api), posted(api)
    first, again = finished
    assert kept(redis) == {"local": 16 * image_bytes}
    worker.start(first)
    worker.publish(first, range(3))
    worker.publish(first, range(2, 4))
    assert kept(redis) == {"local": 12 * image_bytes + sizes(range(4))}
    for job in (again, cancelled, failed):
        worker.start(job)
        worker.publish(job, range(1))
    api.post(f"/v1/jobs/{cancelled}/cancel")
    worker.fail(failed, "ended", "by a test")
    api.delete(f"/v1/jobs/{again}")
    assert kept(redis) == {"local": sizes(range(4)) + 2 * sizes(range(1))}
    me = api.get("/v1/me").json()["kept_bytes"]
    assert me == {"most": MOST, "used": kept(redis)["local"], "left": MOST - kept(redis)["local"]}
    sample = f'ddpm_owner_kept_bytes{{owner="local"}} {float(kept(redis)["local"])}'
    assert sample in api.get("/metrics").text
    for job in (first, cancelled, failed):
        api.delete(f"/v1/jobs/{job}")
    assert kept(redis) == {}
    assert not redis.exists(KEPT, KEPT_BY_OWNER, KEPT_UNTIL)


def test_images_in_a_results_store_count_as_those_in_redis(
    serving: Serving, redis: Redis, tmp_path: Path
) -> None:
    api = serving(results_url=f"file://{tmp_path}")
    worker = IdleWorker(redis, open_store(f"file://{tmp_path}"))
    job = posted(api)
    worker.start(job)
    worker.publish(job, range(4))
    assert kept(redis) == {"local": sizes(range(4))}


def test_an_owner_may_keep_so_many_bytes_and_no_more(
    serving: Serving, redis: Redis, worker: IdleWorker, image_bytes: int
) -> None:
    api = serving(max_kept_bytes_per_key=8 * image_bytes)
    too_large = problem(api.post("/v1/jobs", json=JOB | {"count": 9}), 422)
    assert too_large["errors"][0]["field"] == "count"
    assert f"up to {9 * image_bytes} bytes, more than the {8 * image_bytes}" in too_large["detail"]
    first, _ = posted(api), posted(api)
    refused = api.post("/v1/jobs", json=JOB | {"count": 1})
    said = problem(refused, 429)
    assert said["type"].endswith("too-many-bytes")
    assert f"your images take {8 * image_bytes} bytes" in said["detail"]
    assert "delete jobs that you have read" in said["detail"]
    assert refused.headers["retry-after"] == "60"
    worker.start(first)
    worker.publish(first, range(4))
    assert posted(api, count=3), "a job that has ended takes less"
    assert problem(api.post("/v1/jobs", json=JOB), 429)["type"].endswith("too-many-bytes")
    api.delete(f"/v1/jobs/{first}")
    assert posted(api, count=1)


def test_posts_at_once_do_not_overshoot(serving: Serving, redis: Redis, image_bytes: int) -> None:
    api = serving(max_kept_bytes_per_key=20 * image_bytes)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: api.post("/v1/jobs", json=JOB), range(16)))
    assert [answer.status_code for answer in answers].count(202) == 5
    assert kept(redis) == {"local": 20 * image_bytes}


def test_images_that_have_expired_are_counted_no_more(
    serving: Serving, redis: Redis, worker: IdleWorker, image_bytes: int
) -> None:
    api = serving(max_kept_bytes_per_key=8 * image_bytes)
    jobs = [posted(api, count=2) for _ in range(2)]
    for job in jobs:
        worker.start(job)
        worker.publish(job, range(2))
    ended_at, now = redis.zscore(KEPT_UNTIL, jobs[0]), redis.time()[0]
    assert 86_000 < ended_at - now <= 86_401
    open_job = posted(api)
    # As if the images' time were over now.
    redis.zadd(KEPT_UNTIL, {jobs[0]: now - 1, open_job: now - 1})
    posted(api, count=3)
    assert kept(redis) == {"local": sizes(range(2)) + 7 * image_bytes}
    assert redis.zscore(KEPT_UNTIL, open_job) > now
    redis.zadd(KEPT_UNTIL, {jobs[1]: now - 1})
    Reaper(redis).run_once()
    assert kept(redis) == {"local": 7 * image_bytes}


def test_jobs_whose_records_are_gone_are_counted_no_more(
    serving: Serving, redis: Redis, worker: IdleWorker
) -> None:
    api = serving()
    jobs = [posted(api) for _ in range(2)]
    worker.start(jobs[0])
    worker.publish(jobs[0], range(4))
    redis.delete(*map(job_key, jobs))
    Reaper(redis).run_once()
    assert kept(redis) == {}


def test_a_job_deleted_from_a_full_store_is_counted_no_more_in_the_end(
    serving: Serving, redis: Redis, worker: IdleWorker
) -> None:
    api = serving()
    jobs = [posted(api, count=1) for _ in range(3)]
    for job in jobs:
        worker.start(job)
        worker.publish(job, range(1))
    redis.config_set("maxmemory", 1)
    try:
        for job in jobs[:2]:
            assert api.delete(f"/v1/jobs/{job}").status_code == 204
        assert [job["id"] for job in api.get("/v1/jobs").json()["jobs"]] == jobs[2:]
    finally:
        redis.config_set("maxmemory", 0)
    Reaper(redis).run_once()
    assert kept(redis) == {"local": sizes(range(1))}


def test_sums_never_drift_from_what_is_kept(
    serving: Serving, redis: Redis, worker: IdleWorker
) -> None:
    api, chance = serving(max_kept_bytes_per_key=10**6), random.Random(1)
    jobs: list[str] = []

    def post() -> None:
        jobs.append(posted(api))

    def publish() -> None:
        job = chance.choice(jobs)
        worker.start(job)
        worker.publish(job, range(chance.randint(0, 2), chance.randint(1, 4)))

    changes = [
        post,
        publish,
        publish,
        lambda: api.post(f"/v1/jobs/{chance.choice(jobs)}/cancel"),
        lambda: api.delete(f"/v1/jobs/{chance.choice(jobs)}"),
        lambda: worker.fail(chance.choice(jobs), "ended", "by a test"),
        lambda: redis.delete(job_key(chance.choice(jobs))),
        Reaper(redis).run_once,
    ]
    post()
    for _ in range(150):
        chance.choice(changes)()
        kept(redis)
    for job in jobs:
        api.delete(f"/v1/jobs/{job}")
    Reaper(redis).run_once()
    assert kept(redis) == {}


def test_an_owner_of_the_file_has_bounds_of_its_own(
    settings: ApiSettings, redis: Redis, tmp_path: Path, image_bytes: int
) -> None:
    text, entry = new_key("ann")
    keys = tmp_path / "keys.toml"
    keys.write_text(f"""
        [ann]
        max_open_image_steps = 70
        max_open_jobs = 2
        max_kept_jobs = 3
        max_kept_bytes = {5 * image_bytes}
        max_streams = 1
        keys = [{{ sha256 = "{entry.partition(":")[2]}" }}]
    """)
    app = create_fresh_app(ApiSettings(**settings.model_dump() | {"api_keys_file": keys}))
    headers = {"authorization": f"Bearer {text}"}
    with serve(app) as url, httpx.Client(base_url=url, headers=headers, timeout=60) as api:
        me = api.get("/v1/me").json()
        assert {name: limit["most"] for name, limit in me.items() if name in LIMITS} == {
            "open_image_steps": 70,
            "open_jobs": 2,
            "kept_jobs": 3,
            "kept_bytes": 5 * image_bytes,
            "streams": 1,
        }

        def refused(**changed: Any) -> str:
            kind: str = problem(api.post("/v1/jobs", json=JOB | changed), 429)["type"]
            return kind.rpartition(":")[2]

        jobs = [posted(api)]
        assert refused(count=4) == "quota-exceeded"
        assert refused(count=2) == "too-many-bytes"
        jobs.append(posted(api, count=1))
        assert refused(count=1, steps=1) == "too-many-jobs"
        for job in jobs:
            api.post(f"/v1/jobs/{job}/cancel")
        jobs.append(posted(api, count=1))
        with api.stream("GET", f"/v1/jobs/{jobs[2]}/events") as held:
            assert held.status_code == 200
            second = api.get(f"/v1/jobs/{jobs[2]}/events")
            assert problem(second, 429)["detail"].startswith("this key has 1 streams")
        api.post(f"/v1/jobs/{jobs[2]}/cancel")
        assert refused(count=1) == "too-many-jobs"


LIMITS = ("open_image_steps", "open_jobs", "kept_jobs", "kept_bytes", "streams")
