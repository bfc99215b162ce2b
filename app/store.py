"""The connection to Redis."""

from __future__ import annotations

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

_TIMEOUT_S = 1.0  # a 503 is to go out within 2 s
_CONNECTIONS = 64


def connect(url: str) -> Redis:
    """Raises at once instead of redis-py's ten retries: it is for the client to try again. Connects when first used."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=_TIMEOUT_S,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), retries=0),
    )
    return Redis.from_pool(pool)
