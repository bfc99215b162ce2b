"""Previews in a job's stream of events, for a reader who names images."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpx
import pytest
from redis import Redis

from app.events import previews
from tests.support import sse
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.sse import Event, Reader
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import preview_key

Post = Callable[..., dict[str, Any]]
Read = Callable[..., AbstractContextManager[Reader]]


@pytest.fixture
def read(api: httpx.Client) -> Read:
    return partial(sse.read, api)


def shown(event: Event) -> tuple[int, bytes]:
    return event.data["index"], b64decode(event.data["png"], validate=True)


def told(events: list[Event]) -> list[tuple[int, bytes]]:
    return [shown(event) for event in events if event.name == "preview"]


def test_each_new_preview_of_an_image_is_told_once_until_the_image_is_finished(
    read: Read, worker: IdleWorker, post: Post
) -> None:
    job = post(count=3)["id"]
    with read(job, previews=[1]) as stream:
        worker.start(job)
        worker.progress(job, 0, 1, 3)
        for shade in (10, 20):
            worker.show(job, 1, shade)
            assert shown(stream.until("preview")[-1]) == (1, png_of(shade))
        worker.publish(job, [1])
        stream.until("image", index=1)
        worker.show(job, 1, 30)
        worker.show(job, 2, 30)
        worker.publish(job, [0, 2])
        assert told(list(stream)) == []


def test_two_images_are_told_apart_and_a_third_is_nobodys_business(
    read: Read, redis: Redis, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=9, start=5)["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 9)
    with read(job, previews=[13, 5, 13]) as stream:
        for index in (5, 13, 6):
            worker.show(job, index, index)
        assert sorted(told(stream.until("preview") + stream.until("preview"))) == [
            (5, png_of(5)),
            (13, png_of(13)),
        ]
        redis.delete(preview_key(job, 5), preview_key(job, 13))
        eventually(
            lambda: set(asked()) == {f"{job} 5", f"{job} 13"}, 20, "workers are asked for both anew"
        )


def test_an_image_that_no_worker_shows_holds_up_no_other(
    read: Read,
    worker: IdleWorker,
    post: Post,
    asked: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(previews, "_WITHIN_S", 30.0)  # longer than the reader waits
    job = post(count=130)["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 64)
    with read(job, previews=[0, 1, 129]) as stream:
        seen = []
        for shade in range(1, 5):
            worker.show(job, 0, shade)
            seen += told(stream.until("preview"))
    assert seen == [(0, png_of(shade)) for shade in range(1, 5)]
    assert not any(request.endswith(" 129") for request in asked()), "its shard waits for a worker"


def test_who_names_no_image_asks_no_worker(
    read: Read, worker: IdleWorker, post: Post, asked: Callable[[], list[str]]
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    with read(job) as stream:
        stream.until("state", state="running")
        worker.publish(job, [0])
        stream.until("image")
        assert asked() == []


def test_a_preview_has_no_id_so_that_a_reader_comes_back_to_what_it_was_told(
    read: Read, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 1)
    worker.show(job, 0, 50)
    with read(job, previews=[0]) as stream:
        *before, preview = stream.until("preview")
    assert preview.id is None
    with read(job, after=before[-1].id, previews=[0]) as stream:
        assert shown(stream.until("preview")[-1]) == (0, png_of(50)), (
            "who comes back is shown it too"
        )


@pytest.mark.parametrize(
    ("indices", "status"),
    [([4, 8], 404), ([-1], 422), ([2**63], 422), ([*range(17)], 422), (["x"], 422)],
)
def test_what_cannot_be_shown_is_refused_before_the_stream_begins(
    api: httpx.Client, post: Post, indices: list[Any], status: int
) -> None:
    job = post(count=4, start=4)["id"]
    refused = api.get(f"/v1/jobs/{job}/events", params={"preview": indices})
    assert problem(refused, status)["detail"]
    if status == 404:
        assert "8" in refused.json()["detail"]
