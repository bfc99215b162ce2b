"""Hostile inputs over real sockets. docs/reference/hostile-inputs.md has the table of them, held to what is tested here."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import Response
from redis import Redis

from app.http import connection as below
from app.main import create_app
from app.settings import ApiSettings
from tests.integration.app.http.hostile_inputs import GROUPS
from tests.support.processes import ROOT
from tests.support.raw_http import Wire, ask, connection, get, post
from tests.support.server import serve
from tests.support.worker import IdleWorker

PAGE = ROOT / "docs" / "reference" / "hostile-inputs.md"
ROWS = [
    (what, request, status)
    for group in GROUPS.values()
    for what, (request, status) in group.items()
]
pytestmark = pytest.mark.usefixtures("redis")


@pytest.mark.parametrize(
    ("what", "request_bytes", "status"), ROWS, ids=[what for what, _, _ in ROWS]
)
def test_what_is_hostile_gets_its_status(
    url: str, what: str, request_bytes: bytes, status: int
) -> None:
    answered = ask(url, request_bytes)
    assert answered is not None
    assert answered.status == status, answered
    assert "x-injected" not in answered.headers
    if status >= 400:
        assert answered.headers["content-type"] == "application/problem+json", answered
    assert f"| {what} | {status} |\n" in PAGE.read_text()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(below, "ARRIVES_WITHIN_S", 0.5)


def drip(wire: Wire, data: bytes) -> None:
    """As slowloris sends it: now and then a byte, so that the connection is never idle."""
    for byte in data:
        wire.send(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "at_once",
    [0, 40, len(post(b" " * 50)) - 50],
    ids=["of its line", "of its headers", "of its body"],
)
def test_a_request_that_comes_byte_by_byte_is_given_up(url: str, at_once: int) -> None:
    request = post(b" " * 50)
    with connection(url) as slow:
        slow.send(request[:at_once])
        with pytest.raises(ConnectionError):  # the server has closed its end
            drip(slow, request[at_once:] * 20)
    with connection(url) as slow:
        slow.send(request[: at_once + 10])
        assert slow.answer().status == 408
        assert slow.answer() is None


def test_a_client_that_does_not_read_is_cut_off(
    settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer that no buffer of the system holds."""
    monkeypatch.setattr(below, "READ_WITHIN_S", 0.3)
    app, size = create_app(settings), 64 << 20
    app.get("/big")(lambda: Response(bytes(size)))
    with serve(app) as url:
        for idle_s, whole in ((0.0, True), (1.5, False)):
            with socket.create_connection(urlsplit(url).netloc.split(":")) as client:
                client.sendall(get(b"/big"))
                time.sleep(idle_s)
                assert (read_all(client, size) >= size) is whole


def read_all(client: socket.socket, enough: int) -> int:
    """Bytes until so many are here, or the other end is closed."""
    seen = 0
    with suppress(ConnectionError):
        while seen < enough and (data := client.recv(1 << 16)):
            seen += len(data)
    return seen


@pytest.mark.usefixtures("impatient")
def test_a_second_request_on_a_connection_has_as_little_time(url: str) -> None:
    with connection(url) as kept:
        kept.send(get(b"/healthz") + b"GET /hea")
        assert [kept.answer().status, kept.answer().status] == [200, 408]
        assert kept.answer() is None


def test_half_a_second_request_keeps_its_connection_from_being_closed_as_idle(
    settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(below, "ARRIVES_WITHIN_S", 0.5)
    with serve(create_app(settings), timeout_keep_alive=0) as url, connection(url) as kept:
        kept.send(get(b"/healthz") + b"GET /hea")
        assert [kept.answer().status, kept.answer().status] == [200, 408]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_that_asks_nothing_is_closed(url: str, sent: bytes) -> None:
    with connection(url) as idle:
        idle.send(sent)
        assert idle.answer() is None


def test_who_waits_for_an_answer_is_not_hurried(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(below, "ARRIVES_WITHIN_S", 1.0)
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
    with connection(url) as patient:
        patient.send(get(f"/v1/jobs/{job}?wait=1.8".encode()) + b"GET /hea")
        assert patient.answer().status == 200
        time.sleep(0.4)  # two seconds after it began
        patient.send(b"lthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert patient.answer().status == 200


def test_a_thousand_idle_connections_keep_nobody_out(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connection(url)).send(b"GET /healthz HTTP/1.1\r\n")
        assert ask(url, get(b"/healthz")).status == 200


def test_requests_that_are_sent_before_the_answers_are_answered_in_their_order(url: str) -> None:
    with connection(url) as pipelined:
        pipelined.send(
            b"".join(get(b"/healthz") + get(b"/nothing") + post(b"[]") for _ in range(20))
        )
        assert [pipelined.answer().status for _ in range(60)] == [200, 404, 422] * 20


def test_many_that_are_sent_at_once_are_not_taken_for_one_that_is_too_large(url: str) -> None:
    request = get(b"/healthz", b"X: " + b"x" * 150)
    with connection(url) as pipelined:
        pipelined.send((request * 600)[:-10])
        assert [pipelined.answer().status for _ in range(599)] == [200] * 599
        pipelined.send(request[-10:])
        assert pipelined.answer().status == 200


def test_one_behind_another_that_is_too_large_is_refused(url: str) -> None:
    with connection(url) as pipelined:
        pipelined.send(get(b"/healthz") + b"GET /healthz HTTP/1.1\r\nX: ")
        assert pipelined.answer().status == 200
        with suppress(ConnectionError):  # it may have answered already
            pipelined.send(b"x" * 1_000_000)
        assert pipelined.answer().status == 431


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 1_000_000, 431),
        (post(b"", b"X: 1", length="x"), 400),
    ],
    ids=["no HTTP", "too large a head", "half of one"],
)
def test_what_is_refused_is_told_so_behind_the_answers_to_those_before_it(
    url: str, behind: bytes, status: int
) -> None:
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
    with connection(url) as pipelined:
        with suppress(ConnectionError):
            pipelined.send(get(f"/v1/jobs/{job}?wait=0.3".encode()) + get(b"/nothing") + behind)
        assert [pipelined.answer().status for _ in range(3)] == [200, 404, status]
        assert pipelined.answer() is None


def test_a_body_that_is_broken_behind_others_is_told_so_behind_their_answers(url: str) -> None:
    chunked = post(b"no length", b"Transfer-Encoding: chunked").replace(
        b"Content-Length: 9\r\n", b""
    )
    with connection(url) as pipelined:
        pipelined.send(get(b"/healthz") + get(b"/nothing") + chunked)
        assert [pipelined.answer().status for _ in range(3)] == [200, 404, 400]
        assert pipelined.answer() is None


@pytest.mark.parametrize("call", ["/grid", "?wait=0.3", "/events", "/images/0"])
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in chunks"])
def test_a_body_that_nobody_asked_for_and_is_too_large_is_refused_or_overlooked_and_not_taken_for_a_client_that_left(
    url: str, worker: IdleWorker, caplog: pytest.LogCaptureFixture, call: str, declared: bool
) -> None:
    job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny", "count": 2}).json()["id"]
    worker.start(job)
    worker.publish(job, [0])
    target = f"/v1/jobs/{job}{call}".encode()
    length = b"Content-Length: 100000" if declared else b"Transfer-Encoding: chunked"
    body = b"x" * 100_000 if declared else b"186a0\r\n" + b"x" * 100_000 + b"\r\n0\r\n\r\n"
    answer = ask(url, get(target, length) + body)
    assert answer.status == (413 if declared else 200)
    assert answer.body or call == "/events", "a stream has no length"
    assert not caplog.records


def test_a_client_that_leaves_behind_a_second_request_is_noticed(
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


def test_who_asks_whether_to_go_on_is_told_so(url: str) -> None:
    body = b'{"model": "tiny"}'
    head, _ = post(body, b"Expect: 100-continue").split(body)
    with connection(url) as asking:
        asking.send(head)
        assert asking.answer().status == 100
        asking.send(body)
        assert asking.answer().status == 202


def multiply(redis: Redis, job: str, count: int) -> None:
    """As if so many more like the only job had been posted: its keys, and its entry in every list, set and hash, for each."""
    others, write = [f"{n:032x}" for n in range(count)], redis.pipeline(transaction=False)
    for key in redis.scan_iter():
        if job.encode() in key:
            for other in others:
                write.copy(key, key.replace(job.encode(), other.encode()))
            continue
        match redis.type(key):
            case b"list":
                write.rpush(
                    key,
                    *(
                        entry.decode().replace(job, other)
                        for entry in redis.lrange(key, 0, -1)
                        for other in others
                    ),
                )
            case b"zset":
                ((_, score),) = redis.zrange(key, 0, -1, withscores=True)
                write.zadd(key, dict.fromkeys(others, score))
            case b"hash":
                if said := redis.hget(key, job):
                    write.hset(key, mapping=dict.fromkeys(others, said))
    write.execute()


def test_ten_thousand_queued_jobs_make_nothing_slow(url: str, redis: Redis) -> None:
    with httpx.Client(base_url=url, timeout=5) as http:
        multiply(redis, http.post("/v1/jobs", json={"model": "tiny"}).json()["id"], 9_998)
        last = http.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
        assert http.get("/v1/jobs").json()["jobs"][0]["id"] == last
        assert http.get(f"/v1/jobs/{last}").json()["queue"]["position"] == 9999
        assert http.post(f"/v1/jobs/{last}/cancel").json()["state"] == "cancelled"
        assert http.delete(f"/v1/jobs/{last}").status_code == 204
