"""A container's health check: `python -m healthy api` or `python -m healthy worker`.

Exit status 0 is healthy.
"""

from __future__ import annotations

import os
import socket
import sys
from urllib.request import ProxyHandler, build_opener

_TIMEOUT_S = 3.0


def api() -> bool:
    """Tell whether the API of this container answers.

    It says nothing of Redis, because restarting the API would not help that.

    Raises:
        OSError: the API refused the connection, or did not answer in time.
    """
    # Docker hands containers the proxy of its configuration, where 127.0.0.1 is the proxy.
    direct = build_opener(ProxyHandler({}))
    url = f"http://127.0.0.1:{os.environ.get('DDPM_PORT') or 8000}/healthz"
    with direct.open(url, timeout=_TIMEOUT_S) as answer:
        return answer.status == 200


def worker() -> bool:
    """Tell whether a worker of this container has sent one of its last heartbeats to Redis.

    Raises:
        RedisError: Redis did not answer, or refused.
    """
    from redis import Redis

    from worker.jobs.keys import WORKERS
    from worker.jobs.worker_registry import READ_WORKERS, parse_workers

    redis = Redis.from_url(os.environ["DDPM_REDIS_URL"], socket_timeout=_TIMEOUT_S)
    living = parse_workers(READ_WORKERS.call(redis, workers=WORKERS))
    return any(
        redis.hget(f"rq:worker:{info.name}", "hostname") == socket.gethostname().encode()
        for info in living
    )


if __name__ == "__main__":
    try:
        healthy = {"api": api, "worker": worker}[sys.argv[1]]()
        sys.exit(0 if healthy else "not heard of")
    # Whatever it is, one line of it is what `docker inspect` should show.
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
