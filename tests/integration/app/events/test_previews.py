"""Previews over HTTP: which worker is asked, what comes, and how a request without any ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from app.events.previews import PreviewReader
from app.main import create_app
from app.operation import redis_client
from app.records.notifier import Notifier
from app.settings import ApiSettings
from tests.support.jobs import make_recipe
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import PREVIEW_LIVES_MS, job_key, png_key, preview_key

Post = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def url(settings: ApiSettings) -> Iterator[str]:
    """An API that waits for previews for as long as a client does."""
    app = create_app(settings)
    app.state.previews.within_s = 3600.0
    with serve(app) as url:
        yield url


@pytest.fixture
def api(url: str, redis: Redis) -> Iterator[httpx.Client]:
    """A client that waits for as long as a busy machine may take."""
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_a_worker_is_asked_and_its_answer_is_the_preview(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=3)["id"]
    worker.start(job)
    threading.Timer(0.3, worker.show, [job, 2]).start()
    got = api.get(f"/v1/jobs/{job}/images/2/preview")
    assert (got.status_code, got.content) == (200, png_of(77))
    assert got.headers["content-type"] == "image/png"
    assert got.headers["cache-control"] == "no-cache"
    assert set(asked()) == {f"{job} 2"}


def test_a_preview_that_is_there_is_not_asked_for_and_not_sent_twice(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.show(job, 0)
    path = f"/v1/jobs/{job}/images/0/preview"
    first = api.get(path)
    again = api.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert asked() == []


def test_a_worker_is_asked_a_few_times_a_second_however_many_clients_wait(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post()["id"]
    worker.start(job)
    path = f"/v1/jobs/{job}/images/0/preview"
    began = time.monotonic()
    with ThreadPoolExecutor(20) as clients:
        waiting = [clients.submit(api.get, path) for _ in range(20)]
        time.sleep(0.5)
        worker.show(job, 0)
        assert [answer.result().status_code for answer in waiting] == [200] * 20
    assert 1 <= len(asked()) <= (time.monotonic() - began) / 0.3 + 1


def test_a_preview_is_gone_soon_and_asked_for_anew(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.show(job, 0, lives_ms=PREVIEW_LIVES_MS)
    eventually(lambda: not redis.exists(preview_key(job, 0)), 20, "the preview is gone")
    threading.Timer(0.2, worker.show, [job, 0, 99]).start()
    assert api.get(f"/v1/jobs/{job}/images/0/preview").content == png_of(99)
    assert set(asked()) == {f"{job} 0"}


def test_the_preview_of_a_finished_image_is_the_image(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    worker.show(job, 0)
    worker.publish(job, [0])
    got = api.get(f"/v1/jobs/{job}/images/0/preview")
    assert (got.content, got.headers["cache-control"]) == (png_of(0), "no-cache")
    redis.delete(png_key(job))
    assert api.get(f"/v1/jobs/{job}/images/0/preview").status_code == 410
    assert asked() == []


def test_images_of_one_index_are_not_each_others(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    jobs = [post(count=2)["id"] for _ in range(2)]
    for job in jobs:
        worker.start(job)
    for n, job in enumerate(jobs):
        for index in (0, 1):
            worker.show(job, index, shade=10 * n + index)
    shown = [
        [api.get(f"/v1/jobs/{job}/images/{index}/preview").content for index in (0, 1)]
        for job in jobs
    ]
    assert shown == [[png_of(0), png_of(1)], [png_of(10), png_of(11)]]


def test_workers_are_not_asked_for_images_that_the_job_does_not_have(
    api: httpx.Client, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=2, start=5)["id"]
    worker.start(job)
    for index in (4, 7, 2**32 - 1):
        assert problem(api.get(f"/v1/jobs/{job}/images/{index}/preview"), 404)
    assert asked() == []


def scripts_run(redis: Redis) -> int:
    stats = redis.info("commandstats")
    return sum(
        stats[name]["calls"] for name in ("cmdstat_eval", "cmdstat_evalsha") if name in stats
    )


def test_a_hundred_clients_that_wait_for_previews_share_every_read(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(count=50)["id"]
    worker.start(job)
    paths = [f"/v1/jobs/{job}/images/{n % 50}/preview" for n in range(100)]
    before, began = scripts_run(redis), time.monotonic()
    with ThreadPoolExecutor(100) as clients:
        waiting = [clients.submit(api.get, path) for path in paths]
        eventually(lambda: len(redis.keys("*:asked")) == 50, 20, "all images are waited for")
        time.sleep(0.5)
        for index in range(50):
            worker.show(job, index)
        assert {answered.result().status_code for answered in waiting} == {200}
    reads = scripts_run(redis) - before
    polls = (time.monotonic() - began) / 0.05
    assert reads <= 100 + polls + 10, "one for each client, and then one for all"


def test_a_job_that_ends_ends_the_waiting(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    threading.Timer(0.3, lambda: api.delete(f"/v1/jobs/{job}")).start()
    problem(api.get(f"/v1/jobs/{job}/images/0/preview"), 404)


def test_a_job_that_does_not_run_has_no_preview_and_no_worker_is_asked(
    api: httpx.Client, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=2, start=5)["id"]
    path = f"/v1/jobs/{job}/images/5/preview"
    assert "queued" in problem(api.get(path), 409)["detail"]
    unknown = problem(api.get(f"/v1/jobs/{job}/images/7/preview"), 404)
    assert unknown["type"].endswith("unknown-image")
    worker.start(job)
    api.post(f"/v1/jobs/{job}/cancel")
    assert "post the job again" in problem(api.get(path), 409)["detail"]
    assert asked() == []


def test_a_worker_that_does_not_answer_is_not_waited_for_long(
    app: FastAPI, worker: IdleWorker, post: Post
) -> None:
    app.state.previews.within_s = 0.5
    job = post()["id"]
    worker.start(job)
    with serve(app) as url:
        began = time.monotonic()
        answer = httpx.get(f"{url}/v1/jobs/{job}/images/0/preview", timeout=60)
        assert time.monotonic() - began >= 0.5
    assert "running" in problem(answer, 409)["detail"]


def test_previews_of_one_owner_leave_room_for_those_of_others(
    settings: ApiSettings, redis: Redis
) -> None:
    """The previews of more images than an owner's share are asked for one after the other."""

    async def run() -> list[bytes | None]:
        async with redis_client.connect(settings.redis_url) as client:
            previews = PreviewReader(client, Notifier(client), within_s=60, share=2)
            reads = [asyncio.create_task(previews.read(of_ann, "ann", n)) for n in range(4)]
            await until(lambda: len(list(asked_for(redis, of_ann))) == 2)
            other = asyncio.create_task(previews.read(of_bob, "bob", 0))
            await until(lambda: len(list(asked_for(redis, of_bob))) == 1)
            assert len(list(asked_for(redis, of_ann))) == 2
            for job in (of_ann, of_bob):
                for index in range(4):
                    redis.set(preview_key(job, index), png_of(index))
            return await asyncio.gather(*reads, other)

    of_ann, of_bob = "a" * 32, "b" * 32
    for job, owner in ((of_ann, "ann"), (of_bob, "bob")):
        record = make_record(job, owner)
        redis.hset(job_key(job), mapping=record | {"state": "running"})
    assert asyncio.run(run()) == [*map(png_of, range(4)), png_of(0)]


def make_record(job: str, owner: str) -> dict[str, Any]:
    recipe = make_recipe()
    return recipe.fields | {
        "id": job,
        "owner": owner,
        "start": 0,
        "count": 4,
        "priority": "interactive",
        "created_at": 1.0,
        "attempts": 1,
        "results_ttl_s": 60,
    }


def asked_for(redis: Redis, job: str) -> Iterator[bytes]:
    return (key for key in redis.keys(f"ddpm:job:{job}:preview:*:asked"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
