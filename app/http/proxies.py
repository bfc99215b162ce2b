"""Who asked, and under which address, where proxies stand before the API."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.records.links import ROOT_PATH

ROOT_PATH_PATTERN = r"(/[A-Za-z0-9._~-]+)+"
_PREFIX = re.compile(ROOT_PATH_PATTERN)
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
# RFC 7239: name=token or name="quoted"
_PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^";,\s]*)\s*')
# The client of a Unix socket has no address.
UNIX = "unix"

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The proxies whose word is taken for who asked, and under which address.

    Attributes:
        networks: Where they are.
        unix: Whether what connects through a Unix socket is one.
    """

    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def parse(cls, entries: Iterable[str]) -> TrustedProxies:
        """Parse addresses, networks and the word `unix`.

        Raises:
            ValueError: An entry is none of them.
        """
        from ipaddress import ip_network

        listed = set(entries)
        return cls(tuple(ip_network(entry) for entry in sorted(listed - {UNIX})), UNIX in listed)

    def trusts(self, address: str | None) -> bool:
        """Return whether a connection from `address`, or through a socket, is a proxy's."""
        if address is None:
            return self.unix
        if not self.networks:
            return False
        try:
            where = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(where, "ipv4_mapped", None) or where
        return any(mapped in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a proxy says of the request that it hands on. Empty texts: nothing that can be used."""

    client: str = ""
    host: str = ""
    scheme: str = ""
    prefix: str = ""


class ProxyHeaders:
    """Takes a trusted proxy's word for client, scheme, host and prefix of a request.

    From everybody else these headers mean nothing. Paths may come with the prefix or without it:
    proxies differ in whether they strip it.
    """

    def __init__(self, app: ASGIApp, trusted: TrustedProxies, root_path: str = "") -> None:
        """Take the proxies, and the prefix where no proxy names one."""
        self.app = app
        self._trusted = trusted
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on as the client sent it, without the prefix in its path."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        root = self._root_path
        client = scope.get("client")
        if self._trusted.trusts(client[0] if client else None):
            said = read_forwarded(Headers(scope=scope), self._trusted)
            scope = _as_sent(scope, said)
            root = said.prefix or root
        ROOT_PATH.set(root)
        if root and scope["path"] == root:
            # Relative links of the page need the slash.
            return await RedirectResponse(f"{root}/", 308)(scope, receive, send)
        if root and scope["path"].startswith(f"{root}/"):
            scope = {**scope, "path": scope["path"].removeprefix(root)}
        return await self.app(scope, receive, send)


def read_forwarded(headers: Headers, trusted: TrustedProxies) -> Forwarded:
    """Read what a trusted proxy says, from `X-Forwarded-*` or, where there is none, `Forwarded`.

    Proxies that set the one hand on the other as the client sent it, so they are never mixed.
    """
    prefix = _fitting(_PREFIX, _last(headers, "x-forwarded-prefix").rstrip("/"))
    if any(f"x-forwarded-{name}" in headers for name in ("for", "host", "proto")):
        chain = ",".join(headers.getlist("x-forwarded-for")).split(",")
        client = _outermost([_address(hop) for hop in chain], trusted)
        host, scheme = _last(headers, "x-forwarded-host"), _last(headers, "x-forwarded-proto")
    else:
        hops = [_pairs(hop) for hop in _elements(",".join(headers.getlist("forwarded")))]
        addresses = [_address(hop.get("for", "")) for hop in hops]
        client = _outermost(addresses, trusted)
        # What the outermost of the trusted proxies has seen itself.
        hop = hops[-1 - addresses[::-1].index(client)] if client else (hops or [{}])[-1]
        host, scheme = hop.get("host", ""), hop.get("proto", "")
    scheme = scheme.lower() if scheme.lower() in ("http", "https") else ""
    return Forwarded(client, _fitting(_HOST, host), scheme, prefix)


def _as_sent(scope: Scope, said: Forwarded) -> Scope:
    """Return the request as the client sent it to the outermost trusted proxy."""
    scope = {**scope, "scheme": said.scheme or scope["scheme"]}
    if said.client:
        scope["client"] = (said.client, 0)
    if said.host:
        others = [header for header in scope["headers"] if header[0] != b"host"]
        scope["headers"] = [(b"host", said.host.encode()), *others]
    return scope


def _outermost(chain: list[str], trusted: TrustedProxies) -> str:
    """Return the last address that is no trusted proxy's, else the first one."""
    return next(
        (hop for hop in reversed(chain) if not trusted.trusts(hop)), chain[0] if chain else ""
    )


def _address(text: str) -> str:
    """Return the address in an element of a chain, without port and brackets; "" for none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text))
    except ValueError:
        return ""


def _elements(text: str) -> list[str]:
    """Split `Forwarded` at its commas, except those in quotes."""
    return [part for part in re.findall(r'(?:"(?:[^"\\]|\\.)*"|[^",])+', text) if part.strip()]


def _pairs(element: str) -> dict[str, str]:
    return {name.lower(): value.strip('"') for name, value in _PAIR.findall(element)}


def _last(headers: Headers, name: str) -> str:
    """Return the last value: that of the nearest proxy."""
    return ",".join(headers.getlist(name)).rpartition(",")[2].strip()


def _fitting(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""
