"""One attempt: one name lookup, one connection, one POST, and the status of its answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from app.webhooks.target import Reach, Target

TIMEOUT_S = 15.0
# Attempts at a time, each with a thread for its lookup.
AT_ONCE = 64

# Addresses of a name that are tried, each for its share of the time. All of them are checked.
MAX_ADDRESSES = 8
# What a receiver may send until its status is known, informational answers (1xx) included.
MAX_ANSWER_BYTES = 65_536

Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an attempt.

    Attributes:
        report: Text for the owner. It names no address and quotes nothing of the answer.
        delivered: Whether the receiver has the message.
        final: Whether another attempt is pointless.
        lookup: A name lookup that still occupies a thread.
    """

    report: str
    delivered: bool = False
    final: bool = False
    lookup: asyncio.Future[Sequence[str]] | None = field(default=None, compare=False, repr=False)


class ForbiddenAddress(Exception):
    """The name leads to no address, or to one that webhooks may not go to.

    The owner does not learn which of the two.
    """


class Sender:
    """Posts messages over httpcore.

    httpcore, unlike httpx, follows no redirect, asks no proxy, keeps no cookie and logs no URL.
    """

    def __init__(
        self, reach: Reach, resolve: Resolve | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Prepare, without a connection.

        Args:
            reach: Addresses that webhooks may go to.
            resolve: Looks a name up; by default the system does.
            timeout_s: Seconds that an attempt may take.
        """
        self._threads = ThreadPoolExecutor(AT_ONCE, "webhook-names")
        # The usual authorities, or those of SSL_CERT_FILE.
        self._tls = httpx.create_ssl_context()
        self._reach = reach
        self._resolve = resolve or self._resolve_by_system
        self.timeout_s = timeout_s

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Make one attempt.

        A lookup cannot be ended. One that takes too long is in the outcome, so that the caller
        counts its thread.
        """
        lookup = asyncio.ensure_future(self._resolve(target.host, target.port))
        try:
            async with asyncio.timeout(self.timeout_s):
                addresses = await asyncio.shield(lookup)
                return _outcome(await self._status(target, addresses, headers, body))
        except TimeoutError:
            return Outcome(f"no answer in {self.timeout_s:g} s", lookup=lookup)
        except ForbiddenAddress:
            return Outcome("the host has no address that webhooks may go to")
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            return Outcome("no connection, or no valid certificate")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            return Outcome("the connection broke, or the answer was no HTTP")

    def close(self) -> None:
        """End the threads, without waiting for lookups."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _status(
        self, target: Target, addresses: Sequence[str], headers: Mapping[str, str], body: bytes
    ) -> int:
        """Post, and give the status of the answer.

        Nothing of the answer's body is read: the connection is closed instead.

        Raises:
            ForbiddenAddress: There is no address, or one of them is out of reach.
        """
        allowed = all(self._reach.allows(ip_address(address)) for address in addresses)
        if not addresses or not allowed:
            raise ForbiddenAddress
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        tried = addresses[:MAX_ADDRESSES]
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._tls,
            network_backend=PinnedAddresses(tried, self.timeout_s / len(tried)),
        )
        sent = list(headers.items())
        async with pool, pool.stream("POST", url, headers=sent, content=body) as answer:
            return answer.status

    async def _resolve_by_system(self, host: str, port: int) -> Sequence[str]:
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError):
            return []
        return [str(where[0]) for *_, where in found]


class PinnedAddresses(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever the name.

    A second lookup could give another answer than the checked one ("DNS rebinding").
    httpcore knows nothing of it: `Host`, SNI and the check of the certificate are for the name.
    """

    def __init__(self, addresses: Sequence[str], share_s: float) -> None:
        """Pin the addresses.

        Args:
            addresses: Tried in this order, at least one.
            share_s: Seconds that each may take but the last. An address that swallows what it is
                sent so leaves time for the others.
        """
        self._addresses = addresses
        self._share_s = share_s
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        # httpcore's signature has the name.
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers.

        Raises:
            httpcore.ConnectError: The last address refused.
            httpcore.ConnectTimeout: The last address did not answer within `timeout` seconds.
        """
        *others, last = self._addresses
        for address in others:
            try:
                return _BoundedStream(
                    await self._tcp.connect_tcp(
                        address, port, self._share_s, local_address, socket_options
                    )
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return _BoundedStream(
            await self._tcp.connect_tcp(last, port, timeout, local_address, socket_options)
        )


class _BoundedStream(httpcore.AsyncNetworkStream):
    """A connection that gives at most `MAX_ANSWER_BYTES`.

    httpcore reads on as long as informational answers come.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left = MAX_ANSWER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read what has come.

        Raises:
            httpcore.ReadError: The receiver sends more than it may.
        """
        if self._left <= 0:
            raise httpcore.ReadError(f"no status in {MAX_ANSWER_BYTES} bytes")
        data = await self._stream.read(min(max_bytes, self._left), timeout)
        self._left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        # httpcore's signature has the name.
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Go on over TLS, where the bytes count that were encrypted."""
        return _BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Give what the connection knows of itself, such as its socket."""
        return self._stream.get_extra_info(info)


def _outcome(status: int) -> Outcome:
    """Judge the receiver's status. With 410 it wants no more, as Standard Webhooks has it."""
    return Outcome(
        f"answered {status}", delivered=200 <= status < 300, final=status == httpx.codes.GONE
    )
