"""Scripts on a real server: loaded, and called by every kind of client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from redis import asyncio as aioredis

from tests.support.processes import ROOT
from tests.support.valkey import valkey_server
from worker.jobs.scripts import Parameter, Script, load

NAMES = sorted(path.stem for path in ROOT.glob("worker/jobs/lua/*.lua"))
ECHO = Script(
    "echo",
    "return redis.call('INCRBY', KEYS[1], ARGV[1])",
    [Parameter("key", "")],
    [Parameter("by", "")],
)


def commands(redis: Redis) -> dict[str, int]:
    """How often the server has run each of the commands that run scripts."""
    stats = redis.info("commandstats")
    names = ("eval", "evalsha", "script|exists", "script|load")
    return {name: stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in names}


@pytest.fixture(scope="module")
def shared_valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own, as its commands are counted."""
    data = tmp_path_factory.mktemp("valkey")
    with valkey_server(data, save="", appendonly="no") as server:
        yield f"{server.connection_url}/0"


@pytest.fixture
def used(redis: Redis):
    """`used()`: the commands since the test began, of a server that knew no script."""
    redis.script_flush()
    before = commands(redis)

    def used() -> dict[str, int]:
        now = commands(redis)
        return {name: now[name] - before[name] for name in now if now[name] != before[name]}

    return used


@pytest.mark.parametrize("name", NAMES)
def test_the_server_compiles_every_script(redis: Redis, name: str) -> None:
    assert redis.script_load(load(name).script) == load(name).sha


def test_a_client_sends_the_text_only_to_a_server_that_lacks_the_script(redis: Redis, used) -> None:
    assert [ECHO.call(redis, key="n", by=2) for _ in range(3)] == [2, 4, 6]
    assert used() == {"evalsha": 3, "eval": 1}


async def test_an_asyncio_client_sends_the_text_only_where_it_must(valkey_url: str, used) -> None:
    async with aioredis.Redis.from_url(valkey_url) as client:
        assert [await ECHO.call(client, key="n", by=2) for _ in range(3)] == [2, 4, 6]
    assert used() == {"evalsha": 3, "eval": 1}


@pytest.mark.parametrize("transaction", [True, False])
def test_a_pipeline_has_the_server_load_a_script_before_it_runs(
    redis: Redis, used, transaction: bool
) -> None:
    for _ in range(2):
        with redis.pipeline(transaction=transaction) as pipe:
            for by in (1, 2):
                ECHO.call(pipe, key="n", by=by)
            answers = pipe.execute()
    assert answers == [4, 6]
    assert used() == {"evalsha": 4, "script|exists": 2, "script|load": 1}


@pytest.mark.parametrize("transaction", [True, False])
async def test_an_asyncio_pipeline_runs_scripts_by_text_and_by_hash(
    valkey_url: str, used, transaction: bool
) -> None:
    async with aioredis.Redis.from_url(valkey_url) as client:
        async with client.pipeline(transaction=transaction) as pipe:
            ECHO.eval(pipe, key="n", by=1)
            ECHO.eval(pipe, key="n", by=2)
            assert await pipe.execute() == [1, 3]
        async with client.pipeline(transaction=transaction) as pipe:
            ECHO.call(pipe, key="n", by=3)
            assert await pipe.execute() == [6]
    assert used() == {"eval": 2, "evalsha": 1, "script|exists": 1}
