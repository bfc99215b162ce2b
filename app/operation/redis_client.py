"""Connections to Redis."""

from __future__ import annotations

import redis as sync
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry

# A 503 is to go out within 2 s.
_TIMEOUT_S = 1.0
_CONNECTIONS = 64


def connect(url: str, timeout_s: float = _TIMEOUT_S) -> Redis:
    """Make a client that connects when it is first used.

    It raises at once, where redis-py would retry ten times: the API's client is to try again.

    Args:
        url: Redis' URL.
        timeout_s: Seconds to wait for each answer.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=_TIMEOUT_S,
        socket_timeout=timeout_s,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), retries=0),
    )
    return Redis.from_pool(pool)


def connect_in_thread(url: str) -> sync.Redis:
    """Make a client for threads, without asyncio, that connects when it is first used."""
    return sync.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=SyncRetry(NoBackoff(), retries=0),
    )
