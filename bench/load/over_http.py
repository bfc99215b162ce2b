"""Arrivals as clients: each posts its job over HTTP when it comes, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.load.arrivals import Arrival
from bench.load.open_loop import ServedLoad
from bench.systems.service import ServiceClient


def serve(client: ServiceClient, arrivals: Sequence[Arrival], steps: int) -> ServedLoad:
    """A thread a job, so that a job that waits keeps no other from coming."""
    start = time.perf_counter()

    def attend(arrival: Arrival) -> float:
        time.sleep(max(0.0, start + arrival.at_s - time.perf_counter()))
        came = time.perf_counter()
        priority = "interactive" if arrival.size.interactive else "bulk"
        client.finished(client.post(arrival.size.images, steps, priority=priority))
        return time.perf_counter() - came

    with ThreadPoolExecutor(len(arrivals)) as clients:
        latencies = list(clients.map(attend, arrivals))
    return ServedLoad(
        latencies,
        time.perf_counter() - start,
        steps * sum(arrival.size.images for arrival in arrivals),
    )
