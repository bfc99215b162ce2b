from __future__ import annotations

import asyncio

from app.operation.turns import Turns


def test_an_owner_who_asks_for_much_waits_behind_itself_alone() -> None:
    async def run() -> list[str]:
        turns = Turns(2)
        done: list[str] = []

        async def work(owner: str, times: int) -> None:
            async with turns.turn(owner):
                for _ in range(times):
                    await asyncio.sleep(0)
                done.append(owner)

        asked = [work("ann", 5) for _ in range(20)] + [work("bob", 5)]
        await asyncio.gather(*asked)
        return done

    done = asyncio.run(run())
    assert done.index("bob") <= 1
    assert done.count("ann") == 20


def test_no_more_tasks_work_at_a_time_than_may() -> None:
    async def run() -> int:
        turns = Turns(3)
        working = most = 0

        async def work(owner: str) -> None:
            nonlocal working, most
            async with turns.turn(owner):
                working += 1
                most = max(most, working)
                await asyncio.sleep(0)
                working -= 1

        await asyncio.gather(*(work(f"owner-{number}") for number in range(20)))
        return most

    assert asyncio.run(run()) == 3
