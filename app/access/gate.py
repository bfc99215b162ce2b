"""Decides who may ask, before a request's body is read or its route is looked up."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import api_keys
from app.access.api_keys import LOCAL, ApiKey, is_loopback_host
from app.access.cost import CostMeter
from app.access.key_file import KeySource
from app.access.public_paths import open_paths
from app.access.rate_limit import RateLimit
from app.access.signed_links import LinkSigner, token_of, without_referrer
from app.problems.exception_handlers import render
from app.problems.problems import (
    Forbidden,
    Problem,
    ThroughProxy,
    TooManyRequests,
    Unauthorized,
    WrongHost,
)
from worker.logs import bind, event

log = logging.getLogger(__name__)
_ANY_HOST = "*"
# A client that asks again at once has its answer after this, and costs others less.
REFUSED_AFTER_S = 0.1
# What proxies add to a request that they hand on.
_PROXY_HEADERS = (
    b"forwarded",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-prefix",
    b"x-real-ip",
)


class Gate:
    """Finds the owner of each request, and refuses requests that have none.

    This happens here and not in the routes, so that a route that forgets to ask is closed as well.
    Paths that are not open need a key, or a link to them that a key has made
    (app/access/signed_links.py). Each key has a limit of requests a second. Whoever knows that a
    request costs more than a plain one takes it from there (app/access/cost.py).

    A service without keys answers only under names of this machine or of `anonymous_hosts`.
    A web page whose name was made to resolve to this machine ("DNS rebinding") asks under its own.
    What a proxy hands on may come from anywhere, whatever its `Host`: most proxies put the name
    there under which they reach the service. So it is answered under names of `anonymous_hosts`
    alone, and loopback is none of those.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeySource,
        limit: RateLimit,
        anonymous_hosts: frozenset[str],
        links: LinkSigner,
    ) -> None:
        self.app = app
        self._keys = keys
        self._limit = limit
        self._links = links
        self._hosts = anonymous_hosts
        self._open = open_paths(bool(keys))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on with its key in `scope["state"]["key"]`, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"] in self._open:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        token = None if "authorization" in headers else token_of(scope)
        if token is not None:
            send = without_referrer(send)
        try:
            key = self._key(headers, scope, token) if self._keys else self._anonymous(headers)
        except Problem as problem:
            log.warning(
                "a request was refused: %s",
                problem.name,
                extra=event("key.refused", problem=problem.name, status=int(problem.status)),
            )
            return await render(problem)(scope, receive, send)
        meter = CostMeter(self._limit, key.name, self._per_s(key) if self._keys else 0.0)
        send = meter.metered(send)
        try:
            meter.spend()
            if self._keys:
                _check_scope(scope, key)
        except Problem as problem:
            if isinstance(problem, TooManyRequests):
                await asyncio.sleep(REFUSED_AFTER_S)
            return await render(problem)(scope, receive, send)
        scope.setdefault("state", {}).update(key=key, meter=meter)
        return await self.app(scope, receive, send)

    def _key(self, headers: Headers, scope: Scope, link: str | None) -> ApiKey:
        if link is not None:
            key = self._links.key_of(scope, link, self._keys.ring().with_id)
            bind(owner=key.name)
            return key
        kind, _, text = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not text.strip():
            raise Unauthorized(sent=False)
        found = self._keys.ring().find(text.strip())
        if found is None:
            raise Unauthorized(sent=True)
        bind(owner=found.name)
        if found.has_expired(time.time()):
            raise Unauthorized(sent=True, expired=True)
        return found

    def _per_s(self, key: ApiKey) -> float:
        return self._limit.per_s if key.requests_per_s is None else key.requests_per_s

    def _anonymous(self, headers: Headers) -> ApiKey:
        host = headers.get("host", "")
        name = _name(host)
        bind(owner=LOCAL.name)
        if _ANY_HOST in self._hosts:
            return LOCAL
        if _is_loopback(name):
            sent = {header for header, _ in headers.raw}
            proxied = next((header for header in _PROXY_HEADERS if header in sent), None)
            if proxied:
                raise ThroughProxy(proxied.decode(), host)
            return LOCAL
        if name in self._hosts:
            return LOCAL
        raise WrongHost(host)


def _check_scope(scope: Scope, key: ApiKey) -> None:
    needed = _needed(scope)
    if not key.may(needed):
        raise Forbidden(needed, key.scopes)


def _needed(scope: Scope) -> api_keys.Scope:
    """Return what the request's key must be allowed to do."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return api_keys.Scope.READ
    return api_keys.Scope.SUBMIT


def host_names(text: str) -> frozenset[str]:
    """Return the names in the setting `anonymous_hosts`, in lower case."""
    return frozenset(name.strip().lower() for name in text.split(",") if name.strip())


# Clients ask for few names. What strangers send for one is forgotten again.
_is_loopback = lru_cache(maxsize=64)(is_loopback_host)


@lru_cache(maxsize=64)
def _name(host: str) -> str:
    """Return the name in a Host header: without the port, in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
