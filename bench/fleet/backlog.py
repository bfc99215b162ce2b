"""Long backlogs, posted by what the API's handler calls, without HTTP.

Over HTTP an API accepts some 200 jobs a second, so that 100,000 of them take eight minutes. The
same code beneath its routes takes a minute: many posts share a pipeline, as those of many clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError

from app.main import create_app
from app.problems.problems import NotOnDisk
from app.schemas.jobs import JobRequest
from app.settings import ApiSettings

# Few enough that a busy machine answers each pipeline in time.
_AT_ONCE = 256
_PAUSE_S = 0.5


def post(jobs: Iterable[tuple[str, Mapping[str, Any]]], settings: Mapping[str, str]) -> list[str]:
    """Post jobs, and return their ids in the same order.

    Args:
        jobs: The owner and the body of each.
        settings: Settings of the API that would accept them.
    """
    return asyncio.run(_post(jobs, ApiSettings(**settings)))  # type: ignore[arg-type]


async def _post(jobs: Iterable[tuple[str, Mapping[str, Any]]], settings: ApiSettings) -> list[str]:
    app = create_app(settings)
    submit = app.state.commands.submit
    ids: list[str] = []
    waiting = iter(jobs)
    # No lifespan: this process reaps nothing, and hears of nothing.
    while some := list(islice(waiting, _AT_ONCE)):
        ids += await asyncio.gather(*(_submit(submit, owner, body) for owner, body in some))
    for client in (app.state.redis, app.state.durable_redis):
        await client.aclose()
    return ids


async def _submit(
    submit: Callable[..., Awaitable[tuple[str, bytes]]], owner: str, body: Mapping[str, Any]
) -> str:
    """Post a job as clients do: again under the same key while the store does not answer."""
    request, key = JobRequest(**body), uuid4().hex
    while True:
        try:
            return (await submit(request, owner, key))[0]
        except (RedisError, NotOnDisk):
            await asyncio.sleep(_PAUSE_S)
