"""Previews over HTTP: who is asked for them, what comes, and what is said where nothing can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from app.events import previews
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import PREVIEW_LIVES_MS, png_key, preview_key

Post = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an answer takes its time."""
    monkeypatch.setattr(previews, "_WITHIN_S", 30.0)


def test_a_worker_is_asked_and_its_answer_is_the_preview(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=3)["id"]
    worker.start(job)
    threading.Timer(0.3, worker.show, [job, 2]).start()
    got = api.get(f"/v1/jobs/{job}/images/2/preview")
    assert (got.status_code, got.content, got.headers["content-type"]) == (
        200,
        png_of(77),
        "image/png",
    )
    assert got.headers["cache-control"] == "no-cache"
    assert set(asked()) == {f"{job} 2"}


def test_what_is_there_is_not_asked_for_and_not_sent_twice(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.show(job, 0)
    first = api.get(f"/v1/jobs/{job}/images/0/preview")
    again = api.get(
        f"/v1/jobs/{job}/images/0/preview", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert asked() == []


def test_however_many_look_a_worker_is_asked_a_few_times_a_second(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post()["id"]
    worker.start(job)
    statuses: list[int] = []
    clients = [
        threading.Thread(
            target=lambda: statuses.append(api.get(f"/v1/jobs/{job}/images/0/preview").status_code)
        )
        for _ in range(20)
    ]
    began = time.monotonic()
    for client in clients:
        client.start()
    time.sleep(0.5)
    worker.show(job, 0)
    for client in clients:
        client.join()
    assert statuses == [200] * 20
    assert 1 <= len(asked()) <= (time.monotonic() - began) / 0.3 + 1


def test_a_preview_is_gone_soon_and_asked_for_anew(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.show(job, 0, lives_ms=PREVIEW_LIVES_MS)
    eventually(lambda: not redis.exists(preview_key(job, 0)), 2, "the preview is gone")
    threading.Timer(0.2, worker.show, [job, 0, 99]).start()
    assert api.get(f"/v1/jobs/{job}/images/0/preview").content == png_of(99)
    assert set(asked()) == {f"{job} 0"}


def test_of_a_finished_image_the_preview_is_the_image(
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


def test_nobody_is_asked_for_what_is_no_image_of_a_running_job(
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


def test_a_hundred_who_wait_for_images_share_every_look(
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
    looks = scripts_run(redis) - before
    assert looks <= 100 + (time.monotonic() - began) / 0.05 + 10, (
        "one for each client, and then one for all"
    )


def test_a_job_that_ends_ends_the_waiting(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    threading.Timer(0.3, lambda: api.delete(f"/v1/jobs/{job}")).start()
    began = time.monotonic()
    problem(api.get(f"/v1/jobs/{job}/images/0/preview"), 404)
    assert time.monotonic() - began < 10, "it does not wait to the end"


def test_where_nothing_runs_there_is_nothing_to_show_and_nobody_is_asked(
    api: httpx.Client, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=2, start=5)["id"]
    path = f"/v1/jobs/{job}/images/5/preview"
    began = time.monotonic()
    assert "queued" in problem(api.get(path), 409)["detail"]
    assert problem(api.get(f"/v1/jobs/{job}/images/7/preview"), 404)["type"].endswith(
        "unknown-image"
    )
    worker.start(job)
    api.post(f"/v1/jobs/{job}/cancel")
    assert "post the job again" in problem(api.get(path), 409)["detail"]
    assert time.monotonic() - began < 2, "none of these waits"
    assert asked() == []


def test_a_worker_that_does_not_answer_is_not_waited_for_long(
    api: httpx.Client, worker: IdleWorker, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "_WITHIN_S", 1.0)
    job = post()["id"]
    worker.start(job)
    began = time.monotonic()
    assert "running" in problem(api.get(f"/v1/jobs/{job}/images/0/preview"), 409)["detail"]
    assert 1 <= time.monotonic() - began < 5
