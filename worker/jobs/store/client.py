"""Clients of the job store, for threads and for asyncio, whose connections follow the primary.

Neither client retries a command: whoever calls knows best what an unanswered one means. But no
command is sent over a connection that the server has closed, or that leads to a replica:

- A connection that was closed while it was idle is replaced before anything is sent.
- When a server says that it is a replica (READONLY), all connections to it are dropped. So a
  failover behind one address ends with one error.
- With `redis+sentinel://` the Sentinels are asked for the primary at each new connection.
"""

from __future__ import annotations

import asyncio
import socket
from functools import cache
from typing import Any

from redis import Redis
from redis import asyncio as aioredis
from redis import sentinel as sync_sentinel
from redis.asyncio import connection as aio
from redis.asyncio import sentinel as aio_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool
from redis.exceptions import ConnectionError, MaxConnectionsError, ReadOnlyError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from worker.jobs.store.sentinel_url import SENTINEL_SCHEMES, SentinelUrl

# A Sentinel that does not answer is passed over, and there are others.
_SENTINEL_TIMEOUT_S = 0.3
# An idle connection that a firewall has forgotten is noticed within a minute.
_KEEPALIVE = {
    option: value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if (option := vars(socket).get(name)) is not None
}


def connect(url: str, timeout_s: float, connect_timeout_s: float | None = None) -> Redis:
    """Make a client for threads, which connects when it is first used.

    Args:
        url: redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://.
        timeout_s: seconds to wait for each answer.
        connect_timeout_s: seconds to wait for a connection; `timeout_s` unless it is given.

    Raises:
        ValueError: the URL cannot be read.
    """
    options = _options(url, timeout_s, connect_timeout_s or timeout_s)
    options["retry"] = Retry(NoBackoff(), 0)
    if not _is_sentinel(url):
        return Redis.from_pool(FollowingPool.from_url(url, **options))
    found = SentinelUrl.parse(url)
    sentinel = sync_sentinel.Sentinel(found.sentinels, sentinel_kwargs=_of_sentinel(found, options))
    client: Redis = sentinel.master_for(found.service, **{**found.server, **options})
    return client


def connect_async(
    url: str, timeout_s: float, connections: int, connect_timeout_s: float
) -> aioredis.Redis:
    """Make a client for asyncio, which connects when it is first used.

    Args:
        url: as `connect` takes it.
        timeout_s: seconds to wait for each answer.
        connections: how many it opens at most. Whoever needs another one waits for
            `connect_timeout_s`, and then gets MaxConnectionsError.
        connect_timeout_s: seconds to wait for a connection.

    Raises:
        ValueError: the URL cannot be read.
    """
    options = _options(url, timeout_s, connect_timeout_s)
    options["retry"] = AsyncRetry(NoBackoff(), 0)
    bounds = {"max_connections": connections, "timeout": connect_timeout_s}
    if not _is_sentinel(url):
        pool = AsyncFollowingPool.from_url(url, **options, **bounds)
        return aioredis.Redis.from_pool(pool)
    found = SentinelUrl.parse(url)
    sentinel = aio_sentinel.Sentinel(found.sentinels, sentinel_kwargs=_of_sentinel(found, options))
    client: aioredis.Redis = sentinel.master_for(
        found.service,
        connection_pool_class=AsyncSentinelPool,
        **{**found.server, **options, **bounds},
    )
    return client


def _is_sentinel(url: str) -> bool:
    return url.partition("://")[0] in SENTINEL_SCHEMES


def _options(url: str, timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        # While these are on, redis-py uses connections that it has found closed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if not url.startswith("unix:"):
        options |= {
            "socket_connect_timeout": connect_timeout_s,
            "socket_keepalive": True,
            "socket_keepalive_options": _KEEPALIVE,
        }
    return options


def _of_sentinel(found: SentinelUrl, options: dict[str, Any]) -> dict[str, Any]:
    waits = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), _SENTINEL_TIMEOUT_S)
    return {**found.sentinel, **options, **waits}


def _is_demotion(answer: object) -> bool:
    """Tell whether the server says in its answer, or within that of a transaction, READONLY."""
    return isinstance(answer, list) and any(isinstance(part, ReadOnlyError) for part in answer)


class _Following:
    """A connection that notes when its server has become a replica."""

    demoted = False

    def read_response(self, *args: Any, **named: Any) -> Any:
        try:
            answer = super().read_response(*args, **named)  # type: ignore[misc]
        except ReadOnlyError:
            self.demoted = True
            raise
        self.demoted = self.demoted or _is_demotion(answer)
        return answer


class _AsyncFollowing:
    """The same for asyncio."""

    demoted = False

    async def read_response(self, *args: Any, **named: Any) -> Any:
        try:
            answer = await super().read_response(*args, **named)  # type: ignore[misc]
        except ReadOnlyError:
            self.demoted = True
            raise
        self.demoted = self.demoted or _is_demotion(answer)
        return answer


@cache
def _following(kind: type, how: type) -> type:
    """Return the class of connections of a kind (TCP, TLS, a socket) that note demotions."""
    return type(f"{how.__name__}{kind.__name__}", (how, kind), {})


class FollowingPool(ConnectionPool):
    """A pool that drops all its connections when one of them has met a replica."""

    def __init__(self, connection_class: type = Connection, **options: Any) -> None:
        super().__init__(connection_class=_following(connection_class, _Following), **options)

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        demoted, connection.demoted = connection.demoted, False
        super().release(connection)
        if demoted:
            with self._lock:
                for each in self._in_use_connections:
                    each.mark_for_reconnect()
            self.disconnect(inuse_connections=False)
            connection.disconnect()


class _Bounded(aio.BlockingConnectionPool):
    """A pool that says so if all its connections are in use."""

    async def get_connection(self, *args: Any, **named: Any) -> Any:
        """Give a connection, after a wait if all are in use.

        Raises:
            MaxConnectionsError: they were in use all the time.
        """
        try:
            return await super().get_connection(*args, **named)  # type: ignore[no-untyped-call]
        except ConnectionError as error:
            if isinstance(error.__cause__, asyncio.TimeoutError):
                raise MaxConnectionsError(
                    f"all {self.max_connections} connections were in use for {self.timeout:g} s"
                ) from None
            raise


class AsyncFollowingPool(_Bounded):
    """A pool that drops all its connections when one of them has met a replica."""

    def __init__(self, connection_class: type = aio.Connection, **options: Any) -> None:
        super().__init__(connection_class=_following(connection_class, _AsyncFollowing), **options)

    async def release(self, connection: Any) -> None:
        """Take a connection back."""
        demoted, connection.demoted = connection.demoted, False
        await super().release(connection)
        if demoted:
            await self.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
            await self.disconnect(inuse_connections=False)


class AsyncSentinelPool(aio_sentinel.SentinelConnectionPool, _Bounded):
    """A bounded pool of connections to the primary that the Sentinels name."""

    async def aclose(self) -> None:
        """Close all connections, also those to the Sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()
