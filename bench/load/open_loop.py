"""Arrivals through an engine in this process.

The engine steps for real. Time in which it has nothing to step is left out.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from bench.load.arrivals import Arrival
from models.diffusion.plans import Plan
from worker.engine.chain import ChainRequest
from worker.engine.engine import Engine

Request = Callable[[int, int, Arrival, Plan], ChainRequest]


@dataclass(frozen=True, slots=True)
class ServedLoad:
    """The outcome of some arrivals.

    Attributes:
        latencies: Seconds from each arrival to its last image, in the order of arrival.
        seconds: From the start to the last image of all.
        image_steps: Image-steps that were done.
    """

    latencies: list[float]
    seconds: float
    image_steps: int


def as_the_service(job: int, image: int, arrival: Arrival, plan: Plan) -> ChainRequest:
    """Return the request of an image as the service makes it, with its job and priority."""
    return ChainRequest(
        (job, image), job, plan, seed=job, index=image, interactive=arrival.size.interactive
    )


def first_come_first_served(job: int, image: int, arrival: Arrival, plan: Plan) -> ChainRequest:
    """Return a request that leaves the scheduler nothing to go by but the order of arrival.

    All chains belong to one job and have one priority.
    """
    return ChainRequest((job, image), "everybody", plan, seed=job, index=image)


def serve(engine: Engine, arrivals: Sequence[Arrival], plan: Plan, request: Request) -> ServedLoad:
    """Submit each job when it arrives, and step until all have been served.

    A job that finds the pool full waits for its turn.

    Args:
        engine: An empty engine.
        arrivals: Jobs in the order of arrival.
        plan: Plan of every image.
        request: Makes the request of an image.
    """
    clock = _Clock()
    latencies = [0.0] * len(arrivals)
    left = Counter({job: arrival.size.images for job, arrival in enumerate(arrivals)})
    coming = deque(enumerate(arrivals))

    def next_can_enter() -> bool:
        if not coming:
            return False
        _, arrival = coming[0]
        return arrival.at_s <= clock.now() and engine.room >= arrival.size.images

    while coming or len(engine):
        if not len(engine):
            clock.skip_to(coming[0][1].at_s)
        while next_can_enter():
            job, arrival = coming.popleft()
            images = range(arrival.size.images)
            engine.submit([request(job, image, arrival, plan) for image in images])
        for done in engine.step():
            job, _ = cast("tuple[int, int]", done.request.chain)
            left[job] -= 1
            if not left[job]:
                latencies[job] = clock.now() - arrivals[job].at_s
    return ServedLoad(latencies, clock.now(), engine.image_steps)


@dataclass(slots=True)
class _Clock:
    """A clock that runs as the real one does, and can be put forward."""

    _start: float = field(default_factory=time.perf_counter)

    def now(self) -> float:
        return time.perf_counter() - self._start

    def skip_to(self, at_s: float) -> None:
        self._start -= max(0.0, at_s - self.now())
