"""A container's health check: `python -m healthy api` or `python -m healthy worker`.

Exit status 0 is healthy. It runs every few seconds, so it imports as little as it can.
"""

from __future__ import annotations

import os
import sys
import time

_TIMEOUT_S = 3.0
# The lease of a worker's shards, LEASE_S of worker/jobs/shard_queue.py, which is not imported here.
_LEASE_S = 15.0


def api() -> bool:
    """Tell whether the API of this container answers.

    It says nothing of Redis, because restarting the API would not help that.

    Raises:
        OSError: the API refused the connection, or did not answer in time.
    """
    from urllib.request import ProxyHandler, build_opener

    # Docker hands containers the proxy of its configuration, where 127.0.0.1 is the proxy.
    direct = build_opener(ProxyHandler({}))
    url = f"http://127.0.0.1:{os.environ.get('DDPM_PORT') or 8000}/healthz"
    with direct.open(url, timeout=_TIMEOUT_S) as answer:
        return answer.status == 200


def worker() -> bool:
    """Tell whether Redis took a heartbeat of this container's worker within the last lease.

    The worker touches the file at each of them. If its time lies far ahead, the clock was set back,
    and the file says nothing of now.

    Raises:
        KeyError: DDPM_HEARTBEAT_FILE is not set.
        OSError: there is no such file yet.
    """
    age_s = time.time() - os.stat(os.environ["DDPM_HEARTBEAT_FILE"]).st_mtime
    return abs(age_s) < _LEASE_S


if __name__ == "__main__":
    try:
        healthy = {"api": api, "worker": worker}[sys.argv[1]]()
        sys.exit(0 if healthy else "not heard of")
    # Whatever it is, one line of it is what `docker inspect` should show.
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
