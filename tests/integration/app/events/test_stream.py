"""`/events`: the events of a job, each sent once to every reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from app.events.stream import JobView, ReaderPosition
from app.records.record import Record
from tests.support import sse
from tests.support.jobs import make_recipe
from tests.support.problems import problem
from tests.support.server import serve
from tests.support.sse import StreamReader, states_and_images
from tests.support.worker import IdleWorker

Post = Callable[..., dict[str, Any]]


@pytest.fixture
def read(api: httpx.Client) -> Callable[..., AbstractContextManager[StreamReader]]:
    return partial(sse.read, api)


def test_a_stream_follows_a_job_from_its_beginning_to_its_end(
    read: Any, worker: IdleWorker, post: Post
) -> None:
    job = post(count=2, steps=10)["id"]
    with read(job) as stream:
        assert states_and_images(stream.until("progress")) == ["queued"]
        worker.start(job)
        assert states_and_images(stream.until("state")) == ["running"]
        worker.progress(job, 0, 4, 9)
        assert stream.until("progress")[-1].data["step"] == 4
        worker.publish(job, [1])
        assert states_and_images(stream.until("image")) == [1]
        worker.progress(job, 0, 10, 20)
        worker.publish(job, [0])
        rest = list(stream)
    assert states_and_images(rest) == [0, "finished"]
    progress = {"step": 10, "steps": 10, "images_done": 2, "fraction": 1.0}
    assert progress.items() <= rest[-2].data.items()


def test_a_reader_that_comes_late_gets_everything(
    api: httpx.Client, read: Any, worker: IdleWorker, post: Post
) -> None:
    job = post(count=3, start=5)["id"]
    worker.start(job)
    worker.publish(job, [7, 5, 6])
    with read(job) as stream:
        events = list(stream)
    assert states_and_images(events) == ["queued", "running", 5, 6, 7, "finished"]
    status = api.get(f"/v1/jobs/{job}").json()
    states = [event.data["at"] for event in events if event.name == "state"]
    assert states == [status["created_at"], status["started_at"], status["finished_at"]]
    images = [event.data for event in events if event.name == "image"]
    assert images == [
        {"type": "image"} | {key: image[key] for key in ("index", "url", "sha256", "label")}
        for image in status["images"]
    ]


def test_a_stream_may_be_cut_anywhere_and_goes_on(
    read: Any, worker: IdleWorker, post: Post
) -> None:
    job = post(count=70)["id"]
    worker.start(job)
    worker.publish(job, [*range(0, 70, 3)])
    worker.publish(job, [*range(0, 70, 2)])
    worker.fail(job, "not_finite", "the weights are at fault")
    with read(job) as stream:
        whole = list(stream)
    for cut, event in enumerate(whole[:-1], start=1):
        with read(job, after=event.id) as stream:
            assert states_and_images(list(stream)) == states_and_images(whole[cut:])
    assert whole[-1].data["error"] == {"code": "not_finite", "message": "the weights are at fault"}


def test_a_job_that_is_cancelled_while_queued_never_ran(
    api: httpx.Client, read: Any, post: Post
) -> None:
    job = post()["id"]
    with read(job) as stream:
        stream.until("state", state="queued")
        api.post(f"/v1/jobs/{job}/cancel")
        assert states_and_images(list(stream)) == ["cancelled"]


def test_a_job_whose_last_worker_is_lost_is_queued_again(
    redis: Redis,
    read: Callable[..., AbstractContextManager[StreamReader]],
    worker: IdleWorker,
    post: Post,
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    with read(job) as stream:
        *_, running = stream.until("state", state="running")
        redis.hset(f"ddpm:job:{job}", "state", "queued")
        *_, again = stream.until("state", state="queued")
    worker.start(job)
    worker.publish(job, [0])
    for after, rest in ((running.id, [0]), (again.id, ["running", 0])):
        with read(job, after=after) as stream:
            assert states_and_images(stream.until("progress")) == rest


def test_a_reader_that_joins_others_gets_the_job_as_it_is_now(
    app: FastAPI, worker: IdleWorker, post: Post
) -> None:
    app.state.watcher.poll_every_s = 2.0
    job = post(count=2)["id"]
    with (
        serve(app) as url,
        httpx.Client(base_url=url, timeout=60) as api,
        sse.read(api, job) as first,
    ):
        first.until("progress")
        worker.start(job)
        worker.publish(job, [1])
        with sse.read(api, job) as second:
            assert states_and_images(second.until("progress")) == ["queued", "running", 1]


def test_a_stream_ends_when_its_job_is_deleted(api: httpx.Client, read: Any, post: Post) -> None:
    job = post()["id"]
    with read(job) as stream:
        stream.until("state", state="queued")
        api.delete(f"/v1/jobs/{job}")
        assert states_and_images(list(stream)) == []


def test_a_browser_that_has_the_final_state_is_answered_204(
    api: httpx.Client, read: Any, post: Post
) -> None:
    job = post()["id"]
    api.post(f"/v1/jobs/{job}/cancel")
    with read(job) as stream:
        *_, end = stream
    answer = api.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": end.id})
    assert (answer.status_code, answer.content) == (204, b"")


def test_errors_are_answered_before_the_stream(api: httpx.Client, post: Post) -> None:
    path = f"/v1/jobs/{post()['id']}/events"
    problem(api.get(f"/v1/jobs/{'0' * 32}/events"), 404)
    problem(api.get("/v1/jobs/nonsense/events"), 404)
    for nonsense in ("7", "5-0", "1-", "1-g", "1-" + "f" * 257):
        refused = problem(api.get(path, headers={"Last-Event-ID": nonsense}), 422)
        assert refused["errors"][0]["field"] == "Last-Event-ID"


def test_a_stream_is_neither_cached_nor_buffered_on_its_way(read: Any, post: Post) -> None:
    with read(post()["id"]) as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"


def test_head_is_answered_with_the_headers_of_a_stream_and_ends(
    api: httpx.Client, post: Post
) -> None:
    path = f"/v1/jobs/{post()['id']}/events"
    # Twice, since the connection must be good for another request.
    for _ in range(2):
        answer = api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_silent_stream_is_kept_open_by_comments(app: FastAPI, post: Post) -> None:
    app.state.watcher.heartbeat_s = 0.05
    path = f"/v1/jobs/{post()['id']}/events"
    with serve(app) as url, httpx.stream("GET", url + path, timeout=60) as response:
        lines = response.iter_lines()
        assert re.fullmatch(r"retry: [12]\d{3}|retry: 3000", next(lines))
        assert any(line.startswith(":") for line in lines)


def test_the_events_of_many_images_are_written_in_parts_that_lose_nothing() -> None:
    recipe = make_recipe()
    fields = recipe.fields | {
        "id": "a" * 32,
        "owner": "ann",
        "start": 5,
        "count": 200,
        "priority": "bulk",
        "created_at": 1.0,
        "started_at": 2.0,
        "finished_at": 3.0,
        "attempts": 1,
        "results_ttl_s": 60,
        "state": "finished",
    }
    record = Record.from_hash({name.encode(): str(it).encode() for name, it in fields.items()})
    view = JobView(record, {b"%d" % index: b"ab" * 32 for index in range(5, 205)})
    position, parts = ReaderPosition(), []
    while not position.at_end:
        part, position = view.events_after(position)
        parts.append(part)
    assert all(part.count(b"event: ") <= 64 for part in parts)
    events = b"".join(parts).decode()
    told = [json.loads(line)["index"] for line in re.findall(r"event: image\ndata: (.*)", events)]
    assert told == list(range(5, 205))
    assert events.count("event: state") == 3
