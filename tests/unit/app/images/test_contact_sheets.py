"""The order in which contact sheets are drawn. Nothing is drawn before a test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from app.images.contact_sheets import ContactSheets
from app.problems.problems import ResultsUnreachable
from app.records.record import Record
from app.schemas.jobs import Image
from tests.support.worker import png_of
from worker.jobs.domain import Priority, Recipe

RECORD = Record(
    id="0" * 32,
    owner="ann",
    recipe=Recipe("tiny", "ab" * 32, "ddim", 10, "fixed_small", 0.1, 7),
    start=0,
    count=2,
    priority=Priority.BULK,
    created_at=1.0,
)
IMAGES = [
    Image(index=index, state="finished", url="/", sha256="ab", label=None) for index in (0, 1)
]


class HeldImages:
    """An image reader whose answers come, for each owner, when its event in `let` is set."""

    def __init__(self) -> None:
        self.read_by: list[str] = []
        self.fails = False
        self.let = {owner: asyncio.Event() for owner in ("ann", "bob", "cat")}

    async def read(self, record: Record, hashes: Mapping[int, str | None]) -> list[bytes | None]:
        self.read_by.append(record.owner)
        await self.let[record.owner].wait()
        if self.fails and record.external:
            raise ResultsUnreachable
        return [png_of(index) for index in hashes]


async def stays() -> None:
    """Be a client that never goes."""
    await asyncio.Event().wait()


async def settled() -> None:
    """Let all tasks run until each waits for something."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(test: Callable[[HeldImages, Callable[..., asyncio.Task[Any]]], Awaitable[None]]) -> None:
    async def main() -> None:
        images = HeldImages()
        sheets = ContactSheets(cast("Any", images))

        def draw(
            owner: str, gone: Callable[[], Any] = stays, *, external: bool = False
        ) -> asyncio.Task[Any]:
            return asyncio.create_task(
                sheets.draw(replace(RECORD, owner=owner, external=external), IMAGES, gone)
            )

        try:
            await test(images, draw)
        finally:
            sheets.close()

    asyncio.run(main())


def test_an_owners_sheets_take_turns_and_leave_room_for_anothers():
    async def test(images: HeldImages, draw: Callable[..., asyncio.Task[Any]]) -> None:
        anns = [draw("ann") for _ in range(3)]
        others = draw("bob"), draw("cat")
        await settled()
        assert images.read_by == ["ann", "bob"], "two at a time, and of each owner one"
        images.let["bob"].set()
        png, whole = await others[0]
        assert (png[:4], whole) == (b"\x89PNG", True)
        await settled()
        assert images.read_by == ["ann", "bob", "cat"]
        for event in images.let.values():
            event.set()
        assert len({png for png, _ in await asyncio.gather(*anns)}) == 1
        assert images.read_by.count("ann") == 3

    run(test)


def test_a_sheet_is_not_drawn_for_a_client_that_has_gone_before_its_turn():
    async def test(images: HeldImages, draw: Callable[..., asyncio.Task[Any]]) -> None:
        left = asyncio.Event()
        first, second = draw("ann"), draw("ann", left.wait)
        await settled()
        left.set()
        images.let["ann"].set()
        assert await second is None
        assert await first is not None
        assert images.read_by == ["ann"]

    run(test)


def test_a_store_that_fails_one_sheet_fails_those_that_wait_for_it_and_no_other():
    async def test(images: HeldImages, draw: Callable[..., asyncio.Task[Any]]) -> None:
        stored = [draw("ann", external=True) for _ in range(3)]
        elsewhere = draw("ann")
        await settled()
        images.fails = True
        images.let["ann"].set()
        outcomes = await asyncio.gather(*stored, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ResultsUnreachable] * 3
        assert await elsewhere is not None, "its images are in Redis"
        assert images.read_by == ["ann"] * 2, "the others do not wait for the store as long again"
        images.fails = False
        assert await draw("ann", external=True) is not None, "a later one asks anew"

    run(test)
