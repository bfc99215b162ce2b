from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import Response

from app.access.api_keys import ApiKey
from app.access.streams import OpenStreams, StreamLimit


class Held:
    """An app that answers when the test says so, behind a limit of two for each key."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.asked = asyncio.Semaphore(0)
        self._limited = StreamLimit(self._app, OpenStreams(most=2))

    async def _app(self, scope, receive, send):
        self.asked.release()
        await self.answer.wait()
        await Response()(scope, receive, send)

    def get(self, owner: str, path: str) -> asyncio.Task[int]:
        async def as_owner(scope, receive, send):
            await self._limited({**scope, "state": {"key": ApiKey(owner, b"")}}, receive, send)

        async def ask() -> int:
            transport = httpx.ASGITransport(as_owner)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                return (await client.get(path)).status_code

        return asyncio.create_task(ask())


@pytest.mark.parametrize("path", ["/v1/jobs/1/events", "/v1/jobs/1?wait=50"])
async def test_a_key_holds_so_many_streams_and_waits_open_and_no_more(path: str) -> None:
    held = Held()
    first = [held.get("ann", path), held.get("ann", path)]
    for _ in first:
        await held.asked.acquire()
    assert await held.get("ann", path) == 429
    others = [held.get("bob", path), held.get("ann", "/v1/jobs/1")]
    held.answer.set()
    assert await asyncio.gather(*first, *others) == [200] * 4
    # Those that have ended no longer count.
    assert await held.get("ann", path) == 200
    assert not held._limited._open
