"""The job store's part of the work: round trips, processor time, and what each script takes."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

# Microseconds of each call, by the script's name.
ScriptLog = dict[str, list[int]]

_MOST_LOGGED = 200_000
# Lists "<sha1> <module>.<name>" of every script among a checkout's modules: what has a `sha`, and
# every string that may be one.
_LIST_SCRIPTS = """
import hashlib, importlib, pkgutil
for package in ("worker", "app"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if "cuda" in module.name or "__main__" in module.name: continue
        try: found = vars(importlib.import_module(module.name))
        except ImportError: continue
        for name, value in list(found.items()):
            if isinstance(value, str) and len(value) > 40:
                print(hashlib.sha1(value.encode()).hexdigest(), module.name + "." + name)
            elif isinstance(vars(value).get("sha") if hasattr(value, "__dict__") else None, str):
                print(value.sha, module.name + "." + name)
"""


@dataclass
class ServerCosts:
    """The costs of what happened in a block.

    Attributes:
        reads: Times that the server read from a client: one for each round trip, or nearly.
        cpu_s: Processor time of the server, of all its threads.
    """

    reads: int = 0
    cpu_s: float = 0.0


@contextmanager
def server_costs(redis: Redis) -> Iterator[ServerCosts]:
    """Yield costs, which are filled in when the block ends."""
    costs = ServerCosts()
    reads, cpu_s = _usage(redis)
    yield costs
    reads_after, cpu_s_after = _usage(redis)
    costs.reads = reads_after - reads
    costs.cpu_s = cpu_s_after - cpu_s


@contextmanager
def script_log(redis: Redis, names: Mapping[str, str]) -> Iterator[ScriptLog]:
    """Yield a log of scripts, which is filled in when the block ends.

    To keep it costs the server some time. A script that was sent whole has no name.

    Args:
        redis: A client of the server.
        names: Names of scripts, by their SHA-1.
    """
    log: ScriptLog = defaultdict(list)
    redis.config_set("slowlog-max-len", _MOST_LOGGED)
    redis.config_set("slowlog-log-slower-than", 0)
    redis.slowlog_reset()
    yield log
    redis.config_set("slowlog-log-slower-than", -1)
    # The commands that scripts call are in the log too.
    for entry in redis.slowlog_get(_MOST_LOGGED):
        command, *rest = entry["command"].split()
        if command.lower() == b"evalsha":
            sha1 = rest[0].decode()
            log[names.get(sha1, sha1[:8])].append(entry["duration"])
        elif command.lower() == b"eval":
            log["sent whole"].append(entry["duration"])
    redis.slowlog_reset()


def script_names(checkout: Path) -> dict[str, str]:
    """Return the names of a checkout's scripts, by their SHA-1."""
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_SCRIPTS],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split() for line in listed.stdout.splitlines())


def _usage(redis: Redis) -> tuple[int, float]:
    info = redis.info("everything")
    return info["total_reads_processed"], info["used_cpu_user"] + info["used_cpu_sys"]
