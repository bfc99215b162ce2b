"""Arrivals as clients: each posts its job over HTTP when it arrives, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.load.arrivals import Arrival
from bench.load.open_loop import ServedLoad
from bench.systems.service import ServiceClient


def serve(client: ServiceClient, arrivals: Sequence[Arrival], steps: int) -> ServedLoad:
    """Serve the arrivals by the service, with a thread for each so that none delays another.

    Args:
        client: A client of the service.
        arrivals: Jobs in the order of arrival.
        steps: Steps of each image.
    """
    start = time.perf_counter()

    def post_and_wait(arrival: Arrival) -> float:
        time.sleep(max(0.0, start + arrival.at_s - time.perf_counter()))
        posted = time.perf_counter()
        priority = "interactive" if arrival.size.interactive else "bulk"
        client.finished(client.post(arrival.size.images, steps, priority=priority))
        return time.perf_counter() - posted

    with ThreadPoolExecutor(len(arrivals)) as clients:
        latencies = list(clients.map(post_and_wait, arrivals))
    seconds = time.perf_counter() - start
    images = sum(arrival.size.images for arrival in arrivals)
    return ServedLoad(latencies, seconds, steps * images)
