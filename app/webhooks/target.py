"""The place that a webhook goes to: URLs that are taken, and addresses that are in reach."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx

from app.webhooks.special_purpose import is_public

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PRINTABLE = re.compile("[!-~]*")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
# To most resolvers a name that ends in a number is an address: 2130706433 is 127.0.0.1.
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")
_PORTS = {"http": 80, "https": 443}


class BadTarget(ValueError):
    """A URL that webhooks cannot go to. The text has the remedy."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse a URL as httpx reads it.

        Raises:
            BadTarget: Other libraries could read the URL in another way.
        """
        url = _url(text)
        if url.scheme not in _PORTS or not url.raw_host:
            raise BadTarget(
                "is no http or https URL with a host; send one such as https://example.com/hook"
            )
        if url.userinfo or url.fragment:
            raise BadTarget(
                "has a user, password or fragment; "
                "put what the receiver needs into its path or query"
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
        """Host and port as the `Host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def address(self) -> Address | None:
        """The host as an address; None for a name."""
        return _address(self.host)


class Reach:
    """The addresses that webhooks may go to.

    These are public ones and those in `networks`, apart from those in `denied`.
    """

    def __init__(self, networks: Iterable[Network] = (), denied: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)
        self._denied = tuple(denied)

    def allows(self, address: Address) -> bool:
        """Say whether webhooks may go to this address."""
        is_within = is_public(address) or any(address in network for network in self._networks)
        return is_within and not self.denies(address)

    def denies(self, address: Address) -> bool:
        """Say whether the operator denies this address, be it public or not."""
        return any(address in network for network in self._denied)


def _url(text: str) -> httpx.URL:
    if not _PRINTABLE.fullmatch(text):
        raise BadTarget(
            "holds a character that is none of visible ASCII; "
            "send it percent-encoded, and the host in Punycode"
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
            "has a host that is neither a name nor an address as usually written; "
            "send one such as example.com or 192.0.2.7"
        )
    return host


def _address(host: str) -> Address | None:
    try:
        # With a % it names a network card of this machine.
        return None if "%" in host else ip_address(host)
    except ValueError:
        return None
