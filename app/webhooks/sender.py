"""One attempt: one name lookup, one connection, one POST, and the status of its answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import httpcore
import httpx

from app.webhooks.target import Reach, Target

TIMEOUT_S = 15.0
AT_ONCE = 64  # attempts, each with a thread for its lookup

Resolve = Callable[[str, int], Coroutine[Any, Any, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`said` is for the owner: it names no address and quotes nothing that was answered."""

    said: str
    delivered: bool = False
    final: bool = False
    lookup: asyncio.Future[Sequence[str]] | None = field(
        default=None, compare=False, repr=False
    )  # may go on, in its thread


class ForbiddenAddress(Exception):
    """The name leads to no address, or to one that webhooks may not go to. Which of them is nobody's business."""


class Sender:
    """httpcore, not httpx: no redirects, no proxies, no cookies, and nothing of a URL in its log."""

    def __init__(self, reach: Reach, resolve: Resolve | None = None) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "webhook-names")
        self._tls = httpx.create_ssl_context()  # the usual authorities, or those of SSL_CERT_FILE
        self._reach, self._resolve = reach, resolve or self._by_system

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Outcome:
        """A lookup cannot be ended: one that takes too long is in the outcome, for who counts attempts and so threads."""
        lookup = asyncio.ensure_future(self._resolve(target.host, target.port))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return _judge(
                    await self._status(target, await asyncio.shield(lookup), headers, body)
                )
        except TimeoutError:
            return Outcome(f"no answer in {TIMEOUT_S:g} s", lookup=lookup)
        except ForbiddenAddress:
            return Outcome("the host has no address that webhooks may go to")
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            return Outcome("no connection, or no valid certificate")
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            return Outcome("the connection broke, or the answer was no HTTP")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _status(
        self, target: Target, addresses: Sequence[str], headers: Mapping[str, str], body: bytes
    ) -> int:
        """Nothing of the answer's body is read: the connection is closed instead."""
        if not addresses or not all(
            self._reach.allows(ip_address(address)) for address in addresses
        ):
            raise ForbiddenAddress
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        pool = httpcore.AsyncConnectionPool(
            ssl_context=self._tls, network_backend=_Checked(addresses)
        )
        async with (
            pool,
            pool.stream("POST", url, headers=list(headers.items()), content=body) as answer,
        ):
            return answer.status

    async def _by_system(self, host: str, port: int) -> Sequence[str]:
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError):
            return []
        return [str(where[0]) for *_, where in found]


class _Checked(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever the name: a second answer could be another one ("DNS rebinding").

    httpcore knows nothing of it: `Host`, SNI and the check of the certificate are for the name.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses, self._tcp = addresses, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        share_s = TIMEOUT_S / len(
            self._addresses
        )  # one that swallows what it is sent leaves time for the others
        for address in self._addresses[:-1]:
            try:
                return await self._tcp.connect_tcp(
                    address, port, share_s, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._tcp.connect_tcp(
            self._addresses[-1], port, timeout, local_address, socket_options
        )


def _judge(status: int) -> Outcome:
    """410: the receiver wants no more, as Standard Webhooks has it."""
    return Outcome(
        f"answered {status}", delivered=200 <= status < 300, final=status == httpx.codes.GONE
    )
