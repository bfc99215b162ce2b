"""The latency of one key's status beside another key that sends nothing but dear requests.

`python -m bench.load.dear` measures the median and the 99th percentile in milliseconds. The API
and a Valkey are processes of their own, and so are the 24 connections of the other key, which ask
again at once whatever they are answered. The command exits with 1 if the median beside them is more
than three times the one alone, or if anybody got a 5xx.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

import httpx
import typer
from PIL import Image
from redis import Redis

from app.access.api_keys import new_key
from bench.lib.report import OUT, Out
from bench.systems.api import start_api
from worker.jobs.transitions import PUBLISH, transition_keys

CONNECTIONS = 24
MOST_TIMES = 3.0
SECONDS = 10.0
# Half of what a key may send.
_PAUSE_S = 0.02
_DEAR = ("grid", "archive", "events")


def main(out: Out = OUT) -> None:
    """Measure, and say whether one key may slow another down."""
    (ann, ann_entry), (bob, bob_entry) = new_key("ann"), new_key("bob")
    with start_api(out, api_keys=f"{ann_entry},{bob_entry}") as api:
        job = _finished_job(api.url, api.redis_url, ann)
        paths = [f"/v1/jobs/{job}/{name}" for name in _DEAR]
        paths += ["/v1/jobs?limit=100", "/v1/jobs?state=failed&limit=100", f"/v1/jobs/{job}"]
        with _client(api.url, bob) as client:
            status = client.post("/v1/jobs", json={"count": 1}).json()["links"]["self"]
            alone, _ = _latencies_ms(client, status)
            with _dear_requests(api.url, ann, paths) as answers:
                beside, errors = _latencies_ms(client, status)
    times = statistics.median(beside) / statistics.median(alone)
    print(f"alone:  {_described(alone)}")
    print(f"beside: {_described(beside)}, {times:.1f} times the median alone")
    print(f"answers to the {CONNECTIONS} connections, by status: {dict(sorted(answers.items()))}")
    if errors or times > MOST_TIMES or any(code >= 500 for code in answers):
        raise typer.Exit(1)


def _client(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60)


def _finished_job(url: str, redis_url: str, key: str) -> str:
    """Post a job of 1,024 images that is finished, and a hundred others."""
    with _client(url, key) as client, Redis.from_url(redis_url) as redis:
        job = str(client.post("/v1/jobs", json={"count": 1024}).json()["id"])
        for _ in range(100):
            client.post("/v1/jobs", json={"count": 1})
        png = io.BytesIO()
        Image.new("L", (28, 28)).save(png, "PNG")
        digest = hashlib.sha256(png.getvalue()).hexdigest()
        images = [(index, digest, png.getvalue(), png.tell()) for index in range(1024)]
        keys = transition_keys(job, "interactive")
        PUBLISH.eval(redis, **keys, field="", progress="", images=images)
    return job


def _latencies_ms(client: httpx.Client, path: str) -> tuple[list[float], int]:
    """Ask for a status again and again; return the latencies and the number of errors."""
    latencies, errors = [], 0
    until = time.monotonic() + SECONDS
    while (began := time.monotonic()) < until:
        errors += client.get(path).status_code != 200
        latencies.append((time.monotonic() - began) * 1000)
        time.sleep(_PAUSE_S)
    return latencies, errors


@contextmanager
def _dear_requests(url: str, key: str, paths: Sequence[str]) -> Iterator[Counter[int]]:
    """Send dear requests from another process; count the answers when the block has ended."""
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    found: SimpleQueue[Counter[int]] = context.SimpleQueue()
    process = context.Process(target=_send_all, args=(url, key, paths, over, found))
    process.start()
    answers: Counter[int] = Counter()
    time.sleep(3)  # until all connections are busy
    try:
        yield answers
    finally:
        over.set()
        answers.update(found.get())
        process.join()


def _send_all(
    url: str, key: str, paths: Sequence[str], over: Event, found: SimpleQueue[Counter[int]]
) -> None:
    answers: Counter[int] = Counter()

    def send(first: int) -> None:
        with _client(url, key) as client:
            for path in cycle([*paths[first:], *paths[:first]]):
                if over.is_set():
                    return
                answers[client.get(path).status_code] += 1

    threads = [threading.Thread(target=send, args=(n % len(paths),)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.put(answers)


def _described(latencies_ms: Sequence[float]) -> str:
    ordered = sorted(latencies_ms)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"median {statistics.median(ordered):.1f} ms, 99th {p99:.1f} ms"


if __name__ == "__main__":
    typer.run(main)
