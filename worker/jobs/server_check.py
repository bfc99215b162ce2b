"""Looks at the settings of the server at the start, for those that lose jobs.

API and workers call it, and go on whatever it finds. Only cluster mode is refused, because there no
script of this service runs.
"""

from __future__ import annotations

import logging
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from worker.logs import event

log = logging.getLogger(__name__)


class ClusterMode(Exception):
    """The server is a node of a cluster. The text is the fact and the remedy."""

    def __init__(self) -> None:
        super().__init__(
            "DDPM_REDIS_URL names a server in cluster mode (cluster-enabled yes), where no script "
            "may use the keys of a job together; name a server with cluster-enabled no"
        )


def check_server(redis: Redis) -> None:
    """Warn of each setting of the server that may lose jobs.

    Raises:
        ClusterMode: the server is a node of a cluster.
        RedisError: Redis did not answer.
    """
    for fault in server_faults(redis):
        log.warning("%s", fault, extra=event("redis.misconfigured"))


def server_faults(redis: Redis) -> list[str]:
    """Return a sentence for each setting of the server that may lose jobs, with the remedy.

    Raises:
        ClusterMode: the server is a node of a cluster.
        RedisError: Redis did not answer.
    """
    faults = []
    # Every user may ask this, and INFO not.
    hello = _asked(redis, "HELLO") or {}
    if hello.get("mode") == "cluster":
        raise ClusterMode
    if hello.get("role") in ("replica", "slave"):
        faults.append(
            "Redis is a replica (role replica), which refuses writes or loses them; name its "
            "primary in DDPM_REDIS_URL"
        )
    try:
        info = redis.info()
    except ResponseError as refused:
        faults.append(
            f"Redis does not show its settings to this user ({refused}); grant +info, or see to it "
            "that maxmemory-policy is noeviction and appendonly is yes"
        )
        return faults
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        faults.append(
            f"Redis' maxmemory-policy is {policy}: when it is full, it throws away jobs and "
            "images, which all have a time to live; set maxmemory-policy noeviction"
        )
    faults += _sync_faults(redis) if info.get("aof_enabled", 1) else _snapshot_faults(redis)
    return faults


def _sync_faults(redis: Redis) -> list[str]:
    """Tell what a server loses or delays that does not write its append-only file at once."""
    match _setting(redis, "appendfsync"):
        case "everysec":
            return [
                "Redis' appendfsync is everysec: each POST waits for up to a second until the job "
                "is on the disk, and a server without WAITAOF loses the last second in a crash; "
                "set appendfsync always"
            ]
        case "no":
            return [
                "Redis' appendfsync is no: a crash of its machine loses what was accepted in the "
                "last half minute or so; set appendfsync always"
            ]
    return []


def _snapshot_faults(redis: Redis) -> list[str]:
    """Tell what a server without an append-only file loses."""
    if _setting(redis, "save") == "":
        return [
            "Redis' appendonly is no and save is empty: a restart loses all jobs; set appendonly "
            "yes"
        ]
    return [
        "Redis' appendonly is no: a restart loses what was accepted since its last snapshot, if it "
        "makes any; set appendonly yes"
    ]


def _setting(redis: Redis, name: str) -> str | None:
    """Return a setting of the server, or None if this user may not ask."""
    try:
        return redis.config_get(name).get(name)
    except ResponseError:
        return None


def _asked(redis: Redis, command: str) -> dict[str, str] | None:
    """Return the texts in an answer of pairs; None if the server does not know the command."""
    try:
        answer: Any = redis.execute_command(command)
    except ResponseError:
        return None
    pairs = (
        answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    )
    return {_text(name): _text(value) for name, value in pairs if isinstance(value, bytes | str)}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
