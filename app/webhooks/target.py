"""Where a webhook may go: which URLs are taken, and which addresses are connected to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PRINTABLE = re.compile("[!-~]*")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
_NUMBER = re.compile(
    "[0-9]+|0x[0-9a-f]*"
)  # a name that ends in one is an address to most resolvers: 2130706433 is 127.0.0.1
_PORTS = {"http": 80, "https": 443}
_UNICAST_V6 = ip_network(
    "2000::/3"
)  # all else is local, mapped, or translated to IPv4 on its way (64:ff9b::/96)
_TUNNELS_V6 = (
    ip_network("2001::/32"),
    ip_network("2002::/16"),
    ip_network("3fff::/20"),
)  # Teredo, 6to4, and documentation


class BadTarget(ValueError):
    """A URL that webhooks cannot go to; with the remedy."""


@dataclass(frozen=True, slots=True)
class Target:
    scheme: str
    host: str
    port: int
    path: str  # with the query

    @classmethod
    def parse(cls, text: str) -> Target:
        """As httpx reads it. Raises BadTarget for what others may read in another way."""
        url = _url(text)
        if url.scheme not in _PORTS or not url.raw_host:
            raise BadTarget(
                "is no http or https URL with a host; send one such as https://example.com/hook"
            )
        if url.userinfo or url.fragment:
            raise BadTarget(
                "has a user, password or fragment; put what the receiver needs into its path or query"
            )
        port = url.port if url.port is not None else _PORTS[url.scheme]
        if port not in _PORTS.values() and not 1024 <= port <= 65535:
            raise BadTarget(
                "has a port that is neither 80, 443 nor 1024 to 65535; use one of those"
            )
        return cls(
            url.scheme, _host(url.raw_host.decode("ascii")), port, url.raw_path.decode("ascii")
        )

    @property
    def authority(self) -> str:
        """As `Host` has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """Where the host is one, and no name."""
        return _address(self.host)


class Reach:
    """Addresses that webhooks may go to: public ones, and those in `networks`."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)

    def allows(self, address: Address) -> bool:
        return _is_public(address) or any(address in network for network in self._networks)


def _is_public(address: Address) -> bool:
    """What Python calls global holds multicast, and addresses that lead to others."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    return (
        address.is_global
        and address in _UNICAST_V6
        and not any(address in tunnel for tunnel in _TUNNELS_V6)
    )


def _url(text: str) -> httpx.URL:
    if not _PRINTABLE.fullmatch(text):
        raise BadTarget(
            "holds a character that is none of visible ASCII; send it percent-encoded, and the host in Punycode"
        )
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise BadTarget(f"is no URL ({error}); send one such as https://example.com/hook") from None


def _host(host: str) -> str:
    if _address(host):
        return host
    if not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        raise BadTarget(
            "has a host that is neither a name nor an address as usually written; send one such as example.com or 192.0.2.7"
        )
    return host


def _address(host: str) -> Address | None:
    try:
        return None if "%" in host else ip_address(host)  # %: a network card of this machine
    except ValueError:
        return None
