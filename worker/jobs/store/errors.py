"""What each error of the job store's server means: the one table of them.

The API makes problems of it (app/problems/exception_handlers.py), and workers wait by it
(worker/process/background_threads.py). An error that is not in the table, and is no failure to
connect, is a bug of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from redis.exceptions import ConnectionError, MaxConnectionsError, RedisError, TimeoutError


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the server refuses what it could do otherwise.

    Attributes:
        fact: the reason, as the end of a sentence about the server.
        kind: "full" where somebody has to make room, "denied" where the operator has to correct a
            setting, and "passing" where the server has to recover.
    """

    fact: str
    kind: Literal["passing", "denied", "full"] = "passing"


_CLUSTER = Refusal("is a node of a cluster, which this service cannot use", "denied")
# By the word with which the server's answer begins, or by words of an answer that begins with ERR.
REFUSALS: Mapping[str, Refusal] = {
    "OOM": Refusal("is out of memory (maxmemory)", "full"),
    "MISCONF": Refusal("cannot write to its disk", "full"),
    "LOADING": Refusal("is loading its data"),
    "READONLY": Refusal("is a replica: another server takes over, or has done so"),
    "MASTERDOWN": Refusal("is a replica that does not reach its primary"),
    "NOREPLICAS": Refusal("has fewer replicas in good order than min-replicas-to-write"),
    "BUSY": Refusal("is busy with a long script"),
    "UNKILLABLE": Refusal("is busy with a long script that has written"),
    "NOSCRIPT": Refusal("has just forgotten its scripts"),
    "TRYAGAIN": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "MOVED": _CLUSTER,
    "ASK": _CLUSTER,
    "NOAUTH": Refusal("wants a password, and DDPM_REDIS_URL has none", "denied"),
    "WRONGPASS": Refusal("does not accept the user and password of DDPM_REDIS_URL", "denied"),
    "NOPERM": Refusal("does not give the user of DDPM_REDIS_URL the rights it needs", "denied"),
    "max number of clients reached": Refusal("has all the clients that it allows (maxclients)"),
}
# Servers of before WRONGPASS answer with ERR; a client of ours meets a new primary as a replica.
_SYNONYMS: Mapping[str, str] = {
    "invalid password": "WRONGPASS",
    "invalid username-password pair": "WRONGPASS",
    "The previous master is now a slave": "READONLY",
}
_WORDS = re.compile(
    r"(?:^|[\s:-])(" + "|".join(map(re.escape, (*REFUSALS, *_SYNONYMS))) + r")(?![\w-])"
)
# A pipeline puts the command before the server's answer, which may then be quoted in brackets.
_IN_PIPELINE = "caused error: "
_QUOTES = "('\""


def refusal_of(error: RedisError) -> Refusal | None:
    """Return why the server refuses, or None if `error` is none of the table."""
    if error.status_code and error.status_code in REFUSALS:
        return REFUSALS[error.status_code]
    answer = str(error).rpartition(_IN_PIPELINE)[2].lstrip(_QUOTES)
    if found := _WORDS.search(answer):
        return REFUSALS[_SYNONYMS.get(found[1], found[1])]
    return None


def is_unreachable(error: RedisError) -> bool:
    """Tell whether the server could not be asked, or did not answer."""
    return isinstance(error, ConnectionError | TimeoutError) and not refusal_of(error)


def is_exhausted(error: RedisError) -> bool:
    """Tell whether all connections that this process allows itself are in use."""
    return isinstance(error, MaxConnectionsError)


def is_transient(error: RedisError) -> bool:
    """Tell whether to wait for the end of the error: time mends it, or the operator does."""
    return is_unreachable(error) or refusal_of(error) is not None
