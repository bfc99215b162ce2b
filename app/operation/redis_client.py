"""The connection to Redis."""

from __future__ import annotations

import redis as sync
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry

_TIMEOUT_S = 1.0  # a 503 is to go out within 2 s
_CONNECTIONS = 64


def connect(url: str, timeout_s: float = _TIMEOUT_S) -> Redis:
    """`timeout_s` is for each answer. Connects when first used.

    Raises at once instead of redis-py's ten retries: it is for the client to try again.
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
    """For what is not asyncio's. Connects when first used."""
    return sync.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=SyncRetry(NoBackoff(), retries=0),
    )
