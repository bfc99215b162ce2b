"""Connections to Redis."""

from __future__ import annotations

import time
from typing import Any

import redis as sync
from redis.asyncio import Redis

from app.operation.api_metrics import ApiMetrics
from worker.jobs.store import client

# A 503 is to go out within 2 s.
_TIMEOUT_S = 1.0
DEFAULT_CONNECTIONS = 64
# A free connection is there at once, and to open one takes less.
LONG_WAIT_S = 0.001


def connect(
    url: str, timeout_s: float = _TIMEOUT_S, connections: int = DEFAULT_CONNECTIONS
) -> Redis:
    """Make a client that connects when it is first used.

    Args:
        url: Redis' URL.
        timeout_s: Seconds to wait for each answer.
        connections: How many it opens at most.
    """
    return client.connect_async(url, timeout_s, connections, _TIMEOUT_S)


def watch(redis: Redis, metrics: ApiMetrics) -> None:
    """Count waits for a connection, and how many connections are in use."""
    pool = redis.connection_pool
    get = pool.get_connection

    async def timed(*args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return await get(*args, **named)  # type: ignore[no-untyped-call]
        finally:
            waited_s = time.perf_counter() - began
            if waited_s >= LONG_WAIT_S:
                metrics.pool_waited(waited_s)

    pool.get_connection = timed  # type: ignore[method-assign]
    metrics.pools.append(lambda: len(pool._in_use_connections))


def connect_in_thread(url: str) -> sync.Redis:
    """Make a client for threads, without asyncio, that connects when it is first used."""
    return client.connect(url, _TIMEOUT_S)
