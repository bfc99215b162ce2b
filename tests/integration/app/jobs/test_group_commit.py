"""Many writes at once: in few pipelines, and each with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import redis.asyncio as asyncio_redis
from redis import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError, ResponseError

from app.jobs.group_commit import GroupCommit, Write
from app.operation import redis_client
from app.records.queue_reader import QueueReader
from app.settings import ApiSettings
from tests.support.proxy import Proxy, proxy
from tests.support.server import create_fresh_app, serve

CLIENTS = 190


@pytest.fixture
async def behind(valkey_url: str) -> AsyncIterator[tuple[Proxy, asyncio_redis.Redis]]:
    """A proxy before the server, and a client of it."""
    with proxy(valkey_url) as between:
        client = redis_client.connect(between.url)
        yield between, client
        await client.aclose()


def append(value: str, key: str = "list") -> Write:
    def write(pipe: Pipeline) -> object:
        return pipe.rpush(key, value)

    return write


async def test_many_writes_at_once_share_pipelines(
    behind: tuple[Proxy, asyncio_redis.Redis], redis: Redis
) -> None:
    between, client = behind
    between.topic = b"WAITAOF"
    commits = GroupCommit(client, QueueReader({}))
    answers = await asyncio.gather(*(commits.run(append(str(n))) for n in range(CLIENTS)))
    # 64 in a pipeline
    assert between.trips == 3
    assert sorted(length for length, _ in answers) == list(range(1, CLIENTS + 1))
    assert redis.llen("list") == CLIENTS


async def test_a_write_that_is_refused_fails_alone(
    behind: tuple[Proxy, asyncio_redis.Redis], redis: Redis
) -> None:
    _, client = behind
    redis.set("text", "no list")
    commits = GroupCommit(client, QueueReader({}))
    writes = [append("a"), append("b", key="text"), append("c")]
    first, refused, third = await asyncio.gather(*map(commits.run, writes), return_exceptions=True)
    assert isinstance(refused, ResponseError)
    assert [first[0], third[0]] == [1, 2]


async def test_a_client_that_leaves_takes_no_other_ones_answer_along(
    behind: tuple[Proxy, asyncio_redis.Redis],
) -> None:
    _, client = behind
    commits = GroupCommit(client, QueueReader({}))
    leaves, stays = (asyncio.ensure_future(commits.run(append(value))) for value in "ab")
    await asyncio.sleep(0)
    leaves.cancel()
    assert (await stays)[0] == 2


async def test_all_who_wait_for_a_server_that_is_away_get_its_error_at_once(
    tmp_path: Path,
) -> None:
    client = redis_client.connect(f"unix://{tmp_path}/nobody.sock")
    commits = GroupCommit(client, QueueReader({}))
    writes = (commits.run(append(str(n))) for n in range(CLIENTS))
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(answer, RedisError) for answer in answers)
    await client.aclose()


async def test_all_of_190_posts_at_once_are_accepted(settings: ApiSettings, redis: Redis) -> None:
    with serve(create_fresh_app(settings)) as url:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as api:
            post = partial(api.post, "/v1/jobs", json={"model": "tiny", "count": 1})
            answers = await asyncio.gather(*(post() for _ in range(CLIENTS)))
            assert {answer.status_code for answer in answers} == {202}
            # Those that were posted together may have been told of each other in any order.
            jobs = [answer.json()["links"]["self"] for answer in answers]
            seen = await asyncio.gather(*map(api.get, jobs))
    positions = [status.json()["queue"]["position"] for status in seen]
    assert sorted(positions) == list(range(CLIENTS))
    assert len({answer.json()["id"] for answer in answers}) == CLIENTS
