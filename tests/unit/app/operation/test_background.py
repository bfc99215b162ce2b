from __future__ import annotations

import asyncio
import contextlib

import pytest

from app.operation.background import background, noting_failures


async def for_ever(seen: list[str]) -> None:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        seen.append("ended")
        raise


async def test_loops_end_with_the_block():
    seen: list[str] = []
    async with background(for_ever(seen), for_ever(seen)):
        await asyncio.sleep(0)
        assert seen == []
    assert seen == ["ended", "ended"]


async def test_a_loop_that_fails_is_in_the_log_at_once_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
):
    async def fails() -> None:
        raise ZeroDivisionError

    seen: list[str] = []
    names: list[str] = []
    with noting_failures(names):
        async with background(fails(), for_ever(seen)):
            while "ZeroDivisionError" not in caplog.text:
                await asyncio.sleep(0)
            assert seen == []
    assert seen == ["ended"]
    (name,) = names
    assert name.endswith("fails")


async def test_loops_that_end_by_themselves_or_with_the_block_have_not_failed():
    async def is_done() -> None:
        """End at once."""

    names: list[str] = []
    with noting_failures(names):
        async with background(is_done(), for_ever([])):
            await asyncio.sleep(0.01)
    assert names == []


async def test_a_loop_that_loses_a_cancellation_is_asked_again():
    async def loses_one(seen: list[str]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await for_ever(seen)

    seen: list[str] = []
    async with asyncio.timeout(10), background(loses_one(seen)):
        await asyncio.sleep(0)
    assert seen == ["ended"]
