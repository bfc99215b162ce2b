"""URLs of a job store that Sentinels watch, and hand over to another server when it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redis.connection import parse_url

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_PORT = 26379
_SHAPE = "write redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT,.../SERVICE[/DB]"
# How a client connects, which its caller decides.
_OWN = ("connection_class", "host", "port")
# Options of TLS are the same for Sentinels and servers.
_TLS = "ssl_"


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """Where the Sentinels are, the service that they watch, and how to connect to both.

    Attributes:
        sentinels: host and port of each.
        service: the name under which they watch the servers.
        server: redis-py's options of a connection to a server.
        sentinel: the same of a connection to a Sentinel.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    server: Mapping[str, Any]
    sentinel: Mapping[str, Any]

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Read a URL.

        User and password before the hosts are those of the servers. `sentinel_username` and
        `sentinel_password` in the query are the Sentinels'. All other parameters are those of
        `redis://`, and `rediss+sentinel` means TLS to Sentinels and servers.

        Raises:
            ValueError: the URL lacks something; the text says what, and shows no password.
        """
        parts = urlsplit(url)
        userinfo, at, hosts = parts.netloc.rpartition("@")
        service, _, database = parts.path.removeprefix("/").partition("/")
        if not service:
            raise ValueError(f"it names no service of the Sentinels; {_SHAPE}")
        if database and not database.isdecimal():
            raise ValueError(f"the database after the service is no number; {_SHAPE}")
        query = dict(parse_qsl(parts.query))
        sentinel: dict[str, Any] = {
            name: query.pop(f"sentinel_{name}")
            for name in ("username", "password")
            if f"sentinel_{name}" in query
        }
        scheme = parts.scheme.removesuffix("+sentinel")
        options = urlencode(query, quote_via=quote)
        server = parse_url(f"{scheme}://{userinfo}{at}sentinel/{database}?{options}")
        for name in _OWN:
            server.pop(name, None)
        if scheme == "rediss":
            server["ssl"] = True
            sentinel |= {"ssl": True}
            sentinel |= {name: value for name, value in server.items() if name.startswith(_TLS)}
        return cls(tuple(map(_address, hosts.split(","))), unquote(service), server, sentinel)


def _address(host: str) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{host}")
        name, port = found.hostname, found.port
    except ValueError:
        name, port = None, None
    if not name:
        # What stands there may be a part of a password.
        raise ValueError(f"not every Sentinel is HOST or HOST:PORT; {_SHAPE}")
    return name, port or _PORT
