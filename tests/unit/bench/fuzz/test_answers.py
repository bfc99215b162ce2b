from __future__ import annotations

import json

import pytest

from bench.fuzz.answers import Malformed, faults_of, read_answers

FINE = b"x-content-type-options: nosniff\r\nx-request-id: 1\r\n"


def written(status: int, body: bytes, *lines: bytes, length: int | None = None) -> bytes:
    head = b"".join(line + b"\r\n" for line in lines)
    declared = len(body) if length is None else length
    return b"HTTP/1.1 %d X\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        status,
        FINE,
        head,
        declared,
        body,
    )


def problem(status: int, **members: object) -> bytes:
    body = {"type": "urn:problem-type:ddpm:x", "title": "x", "status": status, "detail": "x"}
    return json.dumps(body | members).encode()


def faults(received: bytes, *, closed: bool = True, head: bool = False) -> list[str]:
    answers = read_answers(received, closed, may_be_head=head)
    return [fault for answer in answers for fault in faults_of(answer)]


PROBLEM = b"content-type: application/problem+json"


def test_answers_that_follow_each_other_are_told_apart() -> None:
    received = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        + written(200, b"{}", b"content-type: application/json")
        + written(404, problem(404), PROBLEM)
    )
    assert [answer.status for answer in read_answers(received, True, False)] == [200, 404]
    assert faults(received) == []


def test_the_answer_to_a_head_has_a_length_and_no_body() -> None:
    received = written(200, b"", length=5) + written(404, problem(404), PROBLEM)
    answers = read_answers(received, True, may_be_head=True)
    assert [answer.status for answer in answers] == [200, 404]


@pytest.mark.parametrize(
    "received",
    [b"nonsense", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", written(200, b"x") + b"more", b"HTTP"],
)
def test_bytes_that_are_no_response_are_found(received: bytes) -> None:
    with pytest.raises(Malformed):
        read_answers(received, True, False)


@pytest.mark.parametrize(
    ("received", "closed"), [(b"HTTP/1.1 100 Continue\r\n\r\n", True), (b"HTTP/1.1 2", False)]
)
def test_an_answer_that_has_not_begun_is_none(received: bytes, closed: bool) -> None:
    assert read_answers(received, closed, may_be_head=False) == []


def test_an_answer_that_is_cut_short_by_a_close_is_no_fault() -> None:
    (answer,) = read_answers(written(200, b"x", length=9), True, False)
    assert not answer.whole


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        (b"HTTP/1.1 204 X\r\n\r\n", "no X-Request-Id"),
        (written(204, b"", b"x-injected: 1"), "a header was injected"),
        (written(404, b"no", b"content-type: text/plain"), "404 as text/plain"),
        (written(404, b"no", PROBLEM), "404 with a body that is no JSON"),
        (written(404, b"{}", PROBLEM), "404 with a body that is no problem: b'{}'"),
        (written(404, problem(400), PROBLEM), "404 with a problem of status 400"),
        (written(200, b"{", b"content-type: application/json"), "a body that is no JSON: b'{'"),
    ],
)
def test_each_fault_of_an_answer_is_found(received: bytes, fault: str) -> None:
    assert fault in faults(received)


def test_a_5xx_is_a_fault_unless_it_is_promised() -> None:
    assert faults(written(500, problem(500), PROBLEM))
    promised = problem(503, type="urn:problem-type:ddpm:too-many-connections")
    assert faults(written(503, promised, PROBLEM)) == []
    assert faults(written(503, problem(503), PROBLEM))
