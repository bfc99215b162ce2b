"""Hostile inputs over real sockets.

docs/reference/hostile-inputs.md has a table of them, which is compared with what is tested here.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import Response
from redis import Redis

from app.http.connection import Connection
from app.main import create_app
from app.settings import ApiSettings
from tests.integration.app.http.hostile_inputs import GROUPS
from tests.support.processes import ROOT
from tests.support.raw_http import Wire, ask, connection, get, post
from tests.support.server import serve
from tests.support.worker import IdleWorker

PAGE = ROOT / "docs" / "reference" / "hostile-inputs.md"
ROWS = [
    (name, request, status)
    for group in GROUPS.values()
    for name, (request, status) in group.items()
]
pytestmark = pytest.mark.usefixtures("redis")


@pytest.mark.parametrize(
    ("name", "request_bytes", "status"), ROWS, ids=[name for name, _, _ in ROWS]
)
def test_a_hostile_input_gets_its_documented_status(
    url: str, name: str, request_bytes: bytes, status: int
) -> None:
    answer = ask(url, request_bytes)
    assert answer is not None
    assert answer.status == status, answer
    assert "x-injected" not in answer.headers
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json", answer
    assert f"| {name} | {status} |\n" in PAGE.read_text()


class ImpatientConnection(Connection):
    """Gives a request half a second to arrive."""

    arrives_within_s = 0.5


@pytest.fixture(scope="module")
def impatient_url(settings: ApiSettings) -> Iterator[str]:
    """An API that gives a request half a second to arrive, and closes idle connections at once."""
    app = create_app(settings)
    with serve(app, connection=ImpatientConnection, timeout_keep_alive=0) as url:
        yield url


def drip(wire: Wire, data: bytes) -> None:
    """Send a byte now and then, as slowloris does, so that the connection is never idle."""
    for byte in data:
        wire.send(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize(
    "at_once",
    [0, 40, len(post(b" " * 50)) - 50],
    ids=["of its line", "of its headers", "of its body"],
)
def test_a_request_that_comes_byte_by_byte_is_given_up(impatient_url: str, at_once: int) -> None:
    request = post(b" " * 50)
    with connection(impatient_url) as slow:
        slow.send(request[:at_once])
        # The server closes its end.
        with pytest.raises(ConnectionError):
            drip(slow, request[at_once:] * 20)
    with connection(impatient_url) as slow:
        slow.send(request[: at_once + 10])
        assert slow.answer().status == 408
        assert slow.answer() is None


@pytest.mark.parametrize(("limit_s", "whole"), [(0.3, False), (60.0, True)])
def test_a_client_that_does_not_read_in_time_is_cut_off(
    settings: ApiSettings, limit_s: float, whole: bool
) -> None:
    """The answer is larger than what the system's buffers hold."""
    unread = threading.Event()
    lost = threading.Event()

    class Observed(Connection):
        read_within_s = limit_s

        def pause_writing(self) -> None:
            super().pause_writing()
            unread.set()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if unread.is_set():
                lost.set()

    app = create_app(settings)
    size = 64 << 20
    app.get("/big")(lambda: Response(bytes(size)))
    with (
        serve(app, connection=Observed) as url,
        socket.create_connection(urlsplit(url).netloc.split(":")) as client,
    ):
        client.sendall(get(b"/big"))
        assert (unread if whole else lost).wait(20)
        assert (read_all(client, size) >= size) is whole


def read_all(client: socket.socket, enough: int) -> int:
    """Read until `enough` bytes are here or the other end is closed. Returns their number."""
    seen = 0
    with suppress(ConnectionError):
        while seen < enough and (data := client.recv(1 << 16)):
            seen += len(data)
    return seen


def test_half_a_second_request_is_given_as_little_time_and_no_less(impatient_url: str) -> None:
    """The connection would be closed as idle, at once, if nothing of a second request came."""
    with connection(impatient_url) as reused:
        reused.send(get(b"/healthz") + b"GET /hea")
        assert [reused.answer().status, reused.answer().status] == [200, 408]
        assert reused.answer() is None


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_that_asks_nothing_is_closed(impatient_url: str, sent: bytes) -> None:
    with connection(impatient_url) as idle:
        idle.send(sent)
        assert idle.answer() is None


def test_a_thousand_idle_connections_keep_nobody_out(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connection(url)).send(b"GET /healthz HTTP/1.1\r\n")
        assert ask(url, get(b"/healthz")).status == 200


def test_pipelined_requests_are_answered_in_their_order(url: str) -> None:
    with connection(url) as pipelined:
        pipelined.send(
            b"".join(get(b"/healthz") + get(b"/nothing") + post(b"[]") for _ in range(20))
        )
        assert [pipelined.answer().status for _ in range(60)] == [200, 404, 422] * 20


def test_many_requests_at_once_are_not_taken_for_one_large_head(url: str) -> None:
    request = get(b"/healthz", b"X: " + b"x" * 150)
    with connection(url) as pipelined:
        pipelined.send((request * 600)[:-10])
        assert [pipelined.answer().status for _ in range(599)] == [200] * 599
        pipelined.send(request[-10:])
        assert pipelined.answer().status == 200


def test_a_large_head_after_another_request_is_refused(url: str) -> None:
    with connection(url) as pipelined:
        pipelined.send(get(b"/healthz") + b"GET /healthz HTTP/1.1\r\nX: ")
        assert pipelined.answer().status == 200
        # The server may have answered and closed already.
        with suppress(ConnectionError):
            pipelined.send(b"x" * 1_000_000)
        assert pipelined.answer().status == 431


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000, 431),
        (post(b"", b"X: 1", length="x"), 400),
    ],
    ids=["no HTTP", "too large a head", "half of one"],
)
def test_a_refused_request_is_answered_after_those_before_it(
    url: str, refused: bytes, status: int
) -> None:
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
    with connection(url) as pipelined:
        with suppress(ConnectionError):
            pipelined.send(get(f"/v1/jobs/{job}?wait=0.3".encode()) + get(b"/nothing") + refused)
        assert [pipelined.answer().status for _ in range(3)] == [200, 404, status]
        assert pipelined.answer() is None


def test_a_broken_body_is_answered_after_the_requests_before_it(url: str) -> None:
    chunked = post(b"no length", b"Transfer-Encoding: chunked").replace(
        b"Content-Length: 9\r\n", b""
    )
    with connection(url) as pipelined:
        pipelined.send(get(b"/healthz") + get(b"/nothing") + chunked)
        assert [pipelined.answer().status for _ in range(3)] == [200, 404, 400]
        assert pipelined.answer() is None


@pytest.mark.parametrize("call", ["?wait=0.2", "/events"])
def test_a_body_that_breaks_while_its_request_is_handled_ends_the_handler(
    url: str, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """The handler would answer on a connection whose answer has ended."""
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
    request = get(f"/v1/jobs/{job}{call}".encode(), b"Transfer-Encoding: chunked")
    with connection(url) as broken:
        broken.send(request + b"no length\r\n")
        answer = broken.answer()
        # A stream may have begun before the body broke.
        assert answer is not None
        assert answer.status == (400 if call != "/events" else answer.status)
        # The handler's time is over when this one's is.
        assert httpx.get(f"{url}/v1/jobs/{job}?wait=0.4").status_code == 200
    httpx.post(f"{url}/v1/jobs/{job}/cancel").raise_for_status()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("call", ["/grid", "?wait=0.3", "/events", "/images/0"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in chunks"])
def test_a_large_body_of_a_get_is_not_taken_for_a_client_that_left(
    url: str, worker: IdleWorker, caplog: pytest.LogCaptureFixture, call: str, declared: bool
) -> None:
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny", "count": 2}).json()["id"]
    worker.start(job)
    worker.publish(job, [0])
    target = f"/v1/jobs/{job}{call}".encode()
    length = b"Content-Length: 100000" if declared else b"Transfer-Encoding: chunked"
    body = b"x" * 100_000 if declared else b"186a0\r\n" + b"x" * 100_000 + b"\r\n0\r\n\r\n"
    answer = ask(url, get(target, length) + body)
    # A body without a declared length is overlooked: nobody reads it.
    assert answer.status == (413 if declared else 200)
    assert answer.body or call == "/events", "a stream has no length"
    assert not caplog.records


def test_a_client_that_leaves_after_a_second_request_is_noticed(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
    for call in ("/events", "?wait=1"):
        with connection(url) as leaving:
            leaving.send(get(f"/v1/jobs/{job}{call}".encode()) + get(b"/healthz"))
            time.sleep(0.2)
    httpx.post(f"{url}/v1/jobs/{job}/cancel")
    time.sleep(0.5)
    assert not caplog.records


def test_a_client_that_expects_100_continue_gets_it(url: str) -> None:
    body = b'{"model": "tiny"}'
    head, _ = post(body, b"Expect: 100-continue").split(body)
    with connection(url) as asking:
        asking.send(head)
        assert asking.answer().status == 100
        asking.send(body)
        assert asking.answer().status == 202


def multiply(redis: Redis, job: str, count: int) -> None:
    """Copy the only job `count` times: its keys, and its entries in lists, sets and hashes."""
    others = [f"{n:032x}" for n in range(count)]
    # At once, as the reaper removes an open job that has no record.
    write = redis.pipeline(transaction=True)
    for key in redis.scan_iter():
        if job.encode() in key:
            for other in others:
                write.copy(key, key.replace(job.encode(), other.encode()))
            continue
        match redis.type(key):
            case b"list":
                entries = [entry.decode() for entry in redis.lrange(key, 0, -1)]
                copies = [entry.replace(job, other) for entry in entries for other in others]
                write.rpush(key, *copies)
            case b"zset":
                ((_, score),) = redis.zrange(key, 0, -1, withscores=True)
                write.zadd(key, dict.fromkeys(others, score))
            case b"hash":
                if value := redis.hget(key, job):
                    write.hset(key, mapping=dict.fromkeys(others, value))
    write.execute()


def test_ten_thousand_queued_jobs_make_nothing_slow(url: str, redis: Redis) -> None:
    with httpx.Client(base_url=url, timeout=5) as http:
        multiply(redis, http.post("/v1/jobs", json={"model": "tiny"}).json()["id"], 9_998)
        last = http.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
        assert http.get("/v1/jobs").json()["jobs"][0]["id"] == last
        assert http.get(f"/v1/jobs/{last}").json()["queue"]["position"] == 9999
        assert http.post(f"/v1/jobs/{last}/cancel").json()["state"] == "cancelled"
        assert http.delete(f"/v1/jobs/{last}").status_code == 204
