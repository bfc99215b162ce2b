"""Decides who may ask, before a request's body is read or its route is looked up."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access.api_keys import LOCAL, ApiKey, Keyring, is_loopback_host
from app.access.public_paths import open_paths
from app.access.rate_limit import RateLimit
from app.problems.exception_handlers import render
from app.problems.problems import Problem, TooManyRequests, Unauthorized, WrongHost

_ANY_HOST = "*"


class Gate:
    """Finds the owner of each request, and refuses requests that have none.

    This happens here and not in the routes, so that a route that forgets to ask is closed as well.
    Paths that are not open need a key, and each key has a limit of requests a second.

    A service without keys answers only under names of this machine or of `anonymous_hosts`.
    A web page whose name was made to resolve to this machine ("DNS rebinding") asks under its own.
    """

    def __init__(
        self, app: ASGIApp, keyring: Keyring, limit: RateLimit, anonymous_hosts: frozenset[str]
    ) -> None:
        self.app = app
        self._keyring = keyring
        self._limit = limit
        self._hosts = anonymous_hosts
        self._open = open_paths(keyring)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with its key in `scope["state"]["key"]`, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"] in self._open:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            key = self._key(headers) if self._keyring else self._anonymous(headers)
        except Problem as problem:
            return await render(problem)(scope, receive, send)
        scope.setdefault("state", {})["key"] = key
        return await self.app(scope, receive, send)

    def _key(self, headers: Headers) -> ApiKey:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise Unauthorized(sent=False)
        key = self._keyring.find(text.strip())
        if key is None:
            raise Unauthorized(sent=True)
        wait_s = self._limit.wait_s(key.name, time.monotonic())
        if wait_s:
            raise TooManyRequests(self._limit.per_s, wait_s)
        return key

    def _anonymous(self, headers: Headers) -> ApiKey:
        host = headers.get("host", "")
        name = _name(host)
        if is_loopback_host(name) or name in self._hosts or _ANY_HOST in self._hosts:
            return LOCAL
        raise WrongHost(host)


def host_names(text: str) -> frozenset[str]:
    """Return the names in the setting `anonymous_hosts`, in lower case."""
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


def _name(host: str) -> str:
    """Return the name in a Host header: without the port, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
