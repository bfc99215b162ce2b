"""Signed links: they read one path for a while, in place of a key.

A link is `EXPIRES.KEY.SIGNATURE` in the query `link` of that path. It stands for the key that made
it, and is refused as soon as that key is. So a web page can show images and follow events without
a key, and nothing has to be stored (docs/decisions/0056).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import parse_qsl

from itsdangerous import Signer
from starlette.types import Message, Scope, Send

from app.access.api_keys import ApiKey
from app.problems.problems import BadLink, NoLinks

PARAMETER = "link"
SHORTEST_S = 60
# As long as the links of S3 and others live at most.
LONGEST_S = 7 * 86_400
# Links that are made within it are the same, so that browsers find in their caches what they show.
_ROUNDED_TO_S = 60
# Hosts may differ in their clocks by as much.
_SKEW_S = 30
_TOKEN = re.compile(r"([1-9][0-9]{0,11})\.([0-9a-f]{16})\.([A-Za-z0-9_-]{43})")


class LinkSigner:
    """Makes signed links and checks them. Without secrets it does neither."""

    def __init__(self, secrets: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        """Take what links are signed by.

        Args:
            secrets: The present one first. Links that earlier ones have signed are taken too.
            clock: Seconds since the epoch.
        """
        self.clock = clock
        self._signer = (
            # itsdangerous signs with the last, and compares in constant time.
            Signer(secrets[::-1], b"ddpm link", key_derivation="hmac", digest_method=sha256)
            if secrets
            else None
        )

    def expiry(self, ttl_s: int) -> int:
        """Return when a link ends that is to live for `ttl_s`, and up to a minute longer.

        Raises:
            NoLinks: there is no secret.
        """
        if self._signer is None:
            raise NoLinks
        return -(-int(self.clock() + ttl_s) // _ROUNDED_TO_S) * _ROUNDED_TO_S

    def sign(self, path: str, key: ApiKey, expires: int) -> str:
        """Return the query of a link to the path.

        Args:
            path: Of the API, without the root path of a proxy.
            key: Who makes the link.
            expires: What `expiry` gave.
        """
        assert self._signer is not None
        signature = self._signer.get_signature(_signed(path, key, expires)).decode()
        return f"{PARAMETER}={expires}.{key.id}.{signature}"

    def key_of(self, scope: Scope, token: str, find: Callable[[str], ApiKey | None]) -> ApiKey:
        """Return the key that has made a link, if the link is good for this request.

        Args:
            scope: The request.
            token: What its query has.
            find: Finds a key by its id.

        Raises:
            BadLink: it is not. The text says why, and shows nothing of the link.
        """
        if self._signer is None:
            raise BadLink("this service signs no links, as it has no DDPM_LINK_SECRET")
        if scope["method"] not in ("GET", "HEAD"):
            raise BadLink(f"a link only reads, and this is a {scope['method']}")
        parts = _TOKEN.fullmatch(token)
        if not parts:
            raise BadLink("the link is cut or changed")
        expires = int(parts[1])
        key = find(parts[2])
        if key is None:
            raise BadLink("the key that made the link is no longer let in, or there was none")
        if not self._signer.verify_signature(_signed(scope["path"], key, expires), parts[3]):
            raise BadLink("the link is not signed by this service for this path")
        if self.clock() >= expires + _SKEW_S:
            ended = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise BadLink(f"the link has expired at {ended}")
        return key


def _signed(path: str, key: ApiKey, expires: int) -> str:
    """Return what is signed. Only the path, which is last, can hold a full stop."""
    return f"{expires}.{key.sha256.hex()}.{path}"


def token_of(scope: Scope) -> str | None:
    """Return the link in a request's query; None if there is none, and "" if there are several."""
    query = scope["query_string"]
    if PARAMETER.encode() not in query:
        return None
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    sent = [value for name, value in pairs if name == PARAMETER]
    if not sent:
        return None
    return sent[0] if len(sent) == 1 else ""


def without_referrer(send: Send) -> Send:
    """Return a `send` that keeps a browser from telling others where it came from."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            message["headers"] = [*headers, (b"referrer-policy", b"no-referrer")]
        await send(message)

    return sending
