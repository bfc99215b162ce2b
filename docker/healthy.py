"""A container's health check: `python -m healthy api` or `python -m healthy worker`. Exit status 0 is healthy."""

from __future__ import annotations

import os
import socket
import sys
from urllib.request import ProxyHandler, build_opener

_TIMEOUT_S = 3.0


def api() -> bool:
    """Whether the API of this container answers. Says nothing of Redis: restarting the API would not help that."""
    direct = build_opener(
        ProxyHandler({})
    )  # Docker hands containers the proxy of its config, where 127.0.0.1 is the proxy
    with direct.open(
        f"http://127.0.0.1:{os.environ.get('DDPM_PORT') or 8000}/healthz", timeout=_TIMEOUT_S
    ) as answer:
        return answer.status == 200


def worker() -> bool:
    """Whether Redis has heard, within the last heartbeats, of a worker that runs in this container."""
    from redis import Redis

    from worker.jobs.keys import WORKERS
    from worker.jobs.worker_registry import READ_WORKERS, parse_workers

    redis = Redis.from_url(os.environ["DDPM_REDIS_URL"], socket_timeout=_TIMEOUT_S)
    heard = parse_workers(READ_WORKERS.call(redis, workers=WORKERS))
    return any(
        redis.hget(f"rq:worker:{info.name}", "hostname") == socket.gethostname().encode()
        for info in heard
    )


if __name__ == "__main__":
    try:
        sys.exit(0 if {"api": api, "worker": worker}[sys.argv[1]]() else "not heard of")
    except (
        Exception
    ) as error:  # whatever it is, one line of it is what `docker inspect` should show
        sys.exit(f"{type(error).__name__}: {error}")
