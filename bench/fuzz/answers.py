"""Reads what came back on a connection strictly, and says what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import h11

# Statuses of 500 and more that a service in order may give, and for which problems alone.
_PROMISED = {
    503: {"connections-in-use", "too-many-connections", "no-worker", "workers-starting"},
}
# It may be all that a client gets that closes its side too early.
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_END_OF_HEAD = b"\r\n\r\n"
_MEMBERS = {"type": str, "title": str, "status": int, "detail": str}


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """A response.

    Attributes:
        headers: By name in small letters.
        whole: Whether its body came to its end.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool


class Malformed(ValueError):
    """What came back is no sequence of HTTP responses."""


def read_answers(received: bytes, closed: bool, may_be_head: bool) -> list[ParsedAnswer]:
    """Parse all that was received on a connection.

    Args:
        received: The bytes.
        closed: Whether the server has closed.
        may_be_head: Whether a HEAD was sent: which answer is its own is then found by trying.

    Raises:
        Malformed: They are no responses.
    """
    fault: Malformed | None = None
    received = received.removeprefix(_CONTINUE)
    if not received or (not closed and _END_OF_HEAD not in received):
        return []
    for method in ("HEAD", "GET") if may_be_head else ("GET",):
        try:
            first, rest = _read_one(received, closed, method)
            return [first, *read_answers(rest, closed, may_be_head)]
        except Malformed as error:
            fault = error
    assert fault
    raise fault


def _read_one(received: bytes, closed: bool, method: str) -> tuple[ParsedAnswer, bytes]:
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "localhost")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(received)
    if closed:
        reader.receive_data(b"")
    head: h11.Response | None = None
    body = b""
    try:
        while True:
            match reader.next_event():
                case h11.Response() as head:
                    pass
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage():
                    assert head
                    return _answer(head, body, whole=True), reader.trailing_data[0]
                case h11.InformationalResponse():
                    pass
                case _:
                    break
    except h11.RemoteProtocolError as error:
        # A server that cuts an answer short says so by closing.
        if head is None or not closed or "without sending complete" not in str(error):
            raise Malformed(f"{error}: {received[:300]!r}") from None
    if head is None:
        raise Malformed(f"half a head: {received[:300]!r}")
    return _answer(head, body, whole=False), b""


def _answer(head: h11.Response, body: bytes, whole: bool) -> ParsedAnswer:
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return ParsedAnswer(head.status_code, headers, body, whole)


def faults_of(answer: ParsedAnswer) -> Iterator[str]:
    """Yield what is wrong with an answer."""
    headers = answer.headers
    if "x-injected" in headers:
        yield "a header was injected"
    if headers.get("x-content-type-options") != "nosniff":
        yield "no X-Content-Type-Options"
    if not headers.get("x-request-id"):
        yield "no X-Request-Id"
    if answer.status >= 400:
        yield from _faults_of_refusal(answer)
    elif answer.whole and answer.body and headers.get("content-type") == "application/json":
        yield from _no_json(answer.body)


def _faults_of_refusal(answer: ParsedAnswer) -> Iterator[str]:
    if answer.headers.get("content-type") != "application/problem+json":
        yield f"{answer.status} as {answer.headers.get('content-type')}"
    elif answer.body:
        if list(_no_json(answer.body)):
            yield f"{answer.status} with a body that is no JSON"
            return
        problem = json.loads(answer.body)
        if any(not isinstance(problem.get(name), kind) for name, kind in _MEMBERS.items()):
            yield f"{answer.status} with a body that is no problem: {answer.body[:300]!r}"
            return
        if problem["status"] != answer.status:
            yield f"{answer.status} with a problem of status {problem['status']}"
    if answer.status >= 500:
        kind = _kind(answer.body)
        if kind not in _PROMISED.get(answer.status, set()) and (
            answer.body or answer.status != 503
        ):
            yield f"{answer.status} {kind}: {answer.body[:300]!r}"


def _no_json(body: bytes) -> Iterator[str]:
    try:
        json.loads(body)
    except ValueError:
        yield f"a body that is no JSON: {body[:300]!r}"


def _kind(body: bytes) -> str:
    found = re.search(rb'"urn:problem-type:ddpm:([a-z-]+)"', body)
    return found[1].decode() if found else "of no kind"
