"""The place in a listing: the last job on the page before.

It is stable under inserts, since new jobs come before every page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

CURSOR_PATTERN = "^[0-9]{1,16}-[0-9a-f]{32}$"
_BATCH = 100


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A job's place. Places are ordered as Redis orders a sorted set: by score, then by member.

    `created_at` is in seconds since the epoch; the text of a cursor has it in microseconds.
    """

    created_at: float
    job: str

    @classmethod
    def parse(cls, cursor: str) -> Cursor:
        """Parse a text that matches `CURSOR_PATTERN`."""
        microseconds, _, job = cursor.partition("-")
        return cls(int(microseconds) / 1e6, job)

    def __str__(self) -> str:
        return f"{round(self.created_at * 1e6)}-{self.job}"


async def newest_first(redis: Redis, key: str, after: Cursor | None) -> AsyncIterator[list[Cursor]]:
    """Read a sorted set of jobs in batches, from behind `after` to its end.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    while True:
        highest = after.created_at if after else "+inf"
        answer = await redis.zrevrangebyscore(
            key, highest, "-inf", start=0, num=_BATCH, withscores=True
        )
        rows = cast("list[tuple[bytes, float]]", answer)
        places = [Cursor(score, job.decode()) for job, score in rows]
        batch = [place for place in places if after is None or place < after]
        if not batch:
            return
        yield batch
        after = batch[-1]
