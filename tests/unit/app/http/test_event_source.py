from __future__ import annotations

import json

import httpx
import pytest
from starlette.requests import Request
from starlette.types import ASGIApp

from app.http.event_source import EventSourceErrors
from app.problems.exception_handlers import render
from app.problems.problems import StoreUnreachable, TooManyRequests, Unauthorized

BROWSER = {"accept": "text/event-stream", "user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}
PROBLEMS = {
    "/503": StoreUnreachable(),
    "/429": TooManyRequests(100, 4.0, "A sheet counts as more."),
    "/401": Unauthorized(sent=True),
}


def failing() -> ASGIApp:
    async def app(scope, receive, send):
        await render(PROBLEMS[Request(scope).url.path])(scope, receive, send)

    return EventSourceErrors(app)


async def ask(path: str, headers: dict[str, str]) -> httpx.Response:
    transport = httpx.ASGITransport(failing())
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(("path", "least_ms"), [("/503", 2000), ("/429", 4000)])
async def test_a_browsers_stream_gets_a_passing_error_as_an_event(path: str, least_ms: int) -> None:
    """EventSource would never come back from a status but 200."""
    answer = await ask(path, BROWSER)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = dict(line.split(": ", 1) for line in answer.text.splitlines() if line)
    assert lines["event"] == "problem"
    assert json.loads(lines["data"])["status"] == int(path[1:])
    assert least_ms <= int(lines["retry"]) <= least_ms + 2000


async def test_readers_are_not_told_to_come_back_at_one_moment() -> None:
    answers = [await ask("/503", BROWSER) for _ in range(8)]
    assert len({answer.text for answer in answers}) > 1


@pytest.mark.parametrize(
    "headers",
    [
        BROWSER | {"user-agent": "python-httpx/0.28"},
        BROWSER | {"accept": "*/*"},
        BROWSER | {"accept": "application/json"},
    ],
)
async def test_everybody_else_gets_the_status(headers: dict[str, str]) -> None:
    assert (await ask("/503", headers)).status_code == 503


async def test_a_refused_key_ends_a_browsers_stream_for_good() -> None:
    assert (await ask("/401", BROWSER)).status_code == 401
