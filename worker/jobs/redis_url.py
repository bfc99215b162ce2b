"""The types of the settings that name the job store, which the API and the workers share."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints
from redis.connection import parse_url

from worker.jobs.domain import Priority
from worker.jobs.keys import DEFAULT_PREFIX, PREFIX, QUEUE_PREFIX
from worker.jobs.store.sentinel_url import SENTINEL_SCHEMES, SentinelUrl

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
_SCHEMES = ("redis", "rediss", "unix", *SENTINEL_SCHEMES)

# Under such a name another service's queues, or RQ's own keys, would be taken for ours.
_RESERVED = (*(f"{priority}:" for priority in Priority), QUEUE_PREFIX.partition(":")[0] + ":")


def _readable(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise ValueError(f"its scheme is none of {', '.join(_SCHEMES)}")
    if scheme in SENTINEL_SCHEMES:
        SentinelUrl.parse(url)
        return url
    try:
        urlsplit(url).port  # noqa: B018  raises what is no number
        parse_url(url)
    # The text of the error may hold a password.
    except ValueError:
        raise ValueError(
            "it is no URL of a server; in user and password, write every character that is no "
            "letter or digit with %"
        ) from None
    return url


RedisUrl = Annotated[str, AfterValidator(_readable)]


def _in_force(prefix: str) -> str:
    if prefix in _RESERVED:
        raise ValueError(f"{prefix} is taken; use another, such as {DEFAULT_PREFIX} or ddpm-2:")
    if prefix != PREFIX:
        raise ValueError(
            f"this process began with {PREFIX}, which is read once, from DDPM_KEY_PREFIX; set it "
            "before the process starts"
        )
    return prefix


KeyPrefix = Annotated[
    str,
    # One colon, at the end: so no prefix is the beginning of another one.
    StringConstraints(pattern=r"^[A-Za-z0-9_.\-]{1,64}:$"),
    AfterValidator(_in_force),
]
