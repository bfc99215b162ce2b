"""Previews in a job's stream of events, for a reader who names images."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from tests.support import sse
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.sse import Event, StreamReader
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import preview_key

Post = Callable[..., dict[str, Any]]
Read = Callable[..., AbstractContextManager[StreamReader]]


@pytest.fixture
def read(api: httpx.Client) -> Read:
    return partial(sse.read, api)


def preview(event: Event) -> tuple[int, bytes]:
    return event.data["index"], b64decode(event.data["png"], validate=True)


def previews(events: list[Event]) -> list[tuple[int, bytes]]:
    return [preview(event) for event in events if event.name == "preview"]


def test_each_new_preview_of_an_image_is_sent_once_until_the_image_is_finished(
    read: Read, worker: IdleWorker, post: Post
) -> None:
    job = post(count=3)["id"]
    with read(job, previews=[1]) as stream:
        worker.start(job)
        worker.progress(job, 0, 1, 3)
        for shade in (10, 20):
            worker.show(job, 1, shade)
            assert preview(stream.until("preview")[-1]) == (1, png_of(shade))
        worker.publish(job, [1])
        stream.until("image", index=1)
        worker.show(job, 1, 30)
        worker.show(job, 2, 30)
        worker.publish(job, [0, 2])
        assert previews(list(stream)) == []


def test_previews_come_of_the_named_images_and_no_other(
    read: Read, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=9, start=5)["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 9)
    with read(job, previews=[13, 5, 13]) as stream:
        for index in (5, 13, 6):
            worker.show(job, index, index)
        events = stream.until("preview") + stream.until("preview")
        assert sorted(previews(events)) == [(5, png_of(5)), (13, png_of(13))]
        redis.delete(preview_key(job, 5), preview_key(job, 13))
        both = {f"{job} 5", f"{job} 13"}
        eventually(lambda: set(asked()) == both, 20, "workers are asked for both anew")


def test_an_image_that_no_worker_previews_holds_up_no_other(
    app: FastAPI, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    app.state.previews.within_s = 3600.0  # longer than the reader waits
    job = post(count=130)["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 64)
    sent = []
    with (
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60) as api,
        sse.read(api, job, previews=[0, 1, 129]) as stream,
    ):
        for shade in range(1, 5):
            worker.show(job, 0, shade)
            sent += previews(stream.until("preview"))
    assert sent == [(0, png_of(shade)) for shade in range(1, 5)]
    assert not any(request.endswith(" 129") for request in asked()), "its shard waits for a worker"


def test_a_reader_that_names_no_image_asks_no_worker(
    read: Read, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    with read(job) as stream:
        stream.until("state", state="running")
        worker.publish(job, [0])
        stream.until("image")
        assert asked() == []


def test_a_preview_has_no_id_so_that_a_reader_resumes_after_the_last_other_event(
    read: Read, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 1)
    worker.show(job, 0, 50)
    with read(job, previews=[0]) as stream:
        *before, last = stream.until("preview")
    assert last.id is None
    with read(job, after=before[-1].id, previews=[0]) as stream:
        again = stream.until("preview")[-1]
        assert preview(again) == (0, png_of(50)), "a reader who comes back gets it too"


@pytest.mark.parametrize(
    ("indices", "status"),
    [([4, 8], 404), ([-1], 422), ([2**63], 422), ([*range(17)], 422), (["x"], 422)],
)
def test_a_preview_of_an_image_that_is_not_there_is_refused_before_the_stream(
    api: httpx.Client, post: Post, indices: list[Any], status: int
) -> None:
    job = post(count=4, start=4)["id"]
    refused = api.get(f"/v1/jobs/{job}/events", params={"preview": indices})
    assert problem(refused, status)["detail"]
    if status == 404:
        assert "8" in refused.json()["detail"]
