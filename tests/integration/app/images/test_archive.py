"""All images of a job in one zip: its contents, when it is there, and what breaks it off."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import httpx
import pytest
from redis import Redis

from app.http.server import Server
from app.main import create_app
from app.settings import ApiSettings
from tests.support.processes import eventually
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import png_key

Post = Callable[..., dict[str, Any]]


@pytest.fixture
def drawn(worker: IdleWorker, post: Post) -> Callable[..., str]:
    """Posts a job and finishes it, and gives its id."""

    def drawn(count: int = 1, start: int = 0) -> str:
        job: str = post(count=count, start=start)["id"]
        worker.start(job)
        worker.publish(job, range(start, start + count))
        return job

    return drawn


@pytest.fixture
def large(redis: Redis, drawn: Callable[..., str]) -> str:
    """A job whose archive fits no buffer between the API and a client."""
    job = drawn(count=64)
    redis.hset(png_key(job), mapping={str(index): random.randbytes(500_000) for index in range(64)})
    return job


def opened(answer: httpx.Response) -> ZipFile:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    return ZipFile(BytesIO(answer.content))


def test_an_archive_has_every_image_under_its_index(
    api: httpx.Client, drawn: Callable[..., str]
) -> None:
    job = drawn(count=40, start=90)  # more than are read at once
    answer = api.get(f"/v1/jobs/{job}/archive")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job}.zip"'
    with opened(answer) as archive:
        assert archive.testzip() is None
        expected = {f"{index:03}.png": png_of(index) for index in range(90, 130)}
        assert archive.namelist() == list(expected)
        assert {name: archive.read(name) for name in archive.namelist()} == expected


def test_an_archive_can_be_unpacked_anywhere(api: httpx.Client, drawn: Callable[..., str]) -> None:
    with opened(api.get(f"/v1/jobs/{drawn(count=20)}/archive")) as archive:
        for entry in archive.infolist():
            assert entry.external_attr >> 16 == 0o644, "else only its owner may read the file"
            stored = (entry.flag_bits & 8, entry.compress_type)
            assert stored == (0, ZIP_STORED), "else readers of a stream know no size"


def test_the_same_images_give_the_same_archive_at_any_time(
    api: httpx.Client, drawn: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (api.get(f"/v1/jobs/{drawn(count=3)}/archive") for _ in range(2))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    third = api.get(f"/v1/jobs/{drawn(count=3)}/archive")
    assert first.content == second.content == third.content
    assert first.headers["etag"] == second.headers["etag"] == third.headers["etag"]
    other = api.get(f"/v1/jobs/{drawn(count=3, start=1)}/archive")
    assert other.headers["etag"] != first.headers["etag"]


def test_an_archive_is_cached_for_ever_and_not_sent_again(
    api: httpx.Client, drawn: Callable[..., str]
) -> None:
    path = f"/v1/jobs/{drawn(count=2)}/archive"
    got = api.get(path)
    assert got.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = api.get(path, headers={"If-None-Match": got.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = api.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", got.headers["etag"])


def test_a_job_that_goes_on_has_no_archive_yet(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=2)["id"]
    path = f"/v1/jobs/{job}/archive"

    def refusal() -> tuple[int, str]:
        answer = api.get(path)
        return answer.status_code, answer.json()["detail"]

    assert refusal()[0] == 409
    worker.start(job)
    worker.publish(job, [0])
    status, detail = refusal()
    assert (status, "running" in detail, "?wait=" in detail) == (409, True, True)
    worker.publish(job, [1])
    assert api.get(path).status_code == 200


def test_the_archive_of_a_cancelled_job_has_what_was_finished(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job, without = post(count=3)["id"], post()["id"]
    worker.start(job)
    worker.publish(job, [1])
    for each in (job, without):
        api.post(f"/v1/jobs/{each}/cancel")
    with opened(api.get(f"/v1/jobs/{job}/archive")) as archive:
        assert archive.namelist() == ["1.png"]
    assert api.get(f"/v1/jobs/{without}/archive").status_code == 409


def test_an_archive_whose_images_are_gone_is_410(
    api: httpx.Client, redis: Redis, drawn: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    job = drawn(count=2)
    has = {"If-None-Match": api.get(f"/v1/jobs/{job}/archive").headers["etag"]}
    redis.delete(png_key(job))
    for headers in ({}, has, {"If-None-Match": "*"}):
        assert api.get(f"/v1/jobs/{job}/archive", headers=headers).status_code == 410
    assert "is gone" not in caplog.text, "images expire without a warning"


def test_an_image_that_goes_meanwhile_breaks_the_archive_off(
    api: httpx.Client, redis: Redis, drawn: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    job = drawn(count=40)
    redis.hdel(png_key(job), "39")
    with (
        caplog.at_level(logging.WARNING, "app.images.responses"),
        pytest.raises(httpx.RemoteProtocolError, match="incomplete"),
    ):
        api.get(f"/v1/jobs/{job}/archive")
    assert f"image 39 of job {job} is gone" in caplog.text
    assert "breaks off" in caplog.text


def test_a_server_that_stops_ends_an_archive_that_nobody_reads(
    settings: ApiSettings,
    large: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = Server(create_app(settings), port=0, log_level="warning", timeout_graceful_shutdown=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, 20, "the server is up")
    with socket.create_connection(server.servers[0].sockets[0].getsockname()) as reader:
        reader.sendall(f"GET /v1/jobs/{large}/archive HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert reader.recv(12) == b"HTTP/1.1 200"
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
    assert "breaks off while it is sent: the API stops" in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_a_reader_that_leaves_an_archive_is_not_logged(
    api: httpx.Client,
    large: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with api.stream("GET", f"/v1/jobs/{large}/archive") as answer:
        next(answer.iter_raw())
    assert api.get(f"/v1/jobs/{large}").status_code == 200
    time.sleep(0.5)
    assert "breaks off" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err
