"""Arrivals through an engine in this process: it steps for real, and the time in which it has nothing to step is left out."""

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
    """What became of some arrivals: seconds from coming to the last image, in the order in which they came."""

    latencies: list[float]
    seconds: float
    image_steps: int


def as_the_service(job: int, image: int, arrival: Arrival, plan: Plan) -> ChainRequest:
    return ChainRequest(
        (job, image), job, plan, seed=job, index=image, interactive=arrival.size.interactive
    )


def first_come_first_served(job: int, image: int, arrival: Arrival, plan: Plan) -> ChainRequest:
    """All chains are one job's, of one class: then nothing but the order of arrival is left for the scheduler to go by."""
    return ChainRequest((job, image), "everybody", plan, seed=job, index=image)


def serve(engine: Engine, arrivals: Sequence[Arrival], plan: Plan, request: Request) -> ServedLoad:
    """Let each job in when it comes, or in its turn where the pool is full, and step until all have been served."""
    clock, latencies = _Clock(), [0.0] * len(arrivals)
    left = Counter({job: arrival.size.images for job, arrival in enumerate(arrivals)})
    coming = deque(enumerate(arrivals))
    while coming or len(engine):
        if not len(engine):
            clock.skip_to(coming[0][1].at_s)
        while (
            coming and coming[0][1].at_s <= clock.now() and engine.room >= coming[0][1].size.images
        ):
            job, arrival = coming.popleft()
            engine.submit(
                [request(job, image, arrival, plan) for image in range(arrival.size.images)]
            )
        for done in engine.step():
            job, _ = cast("tuple[int, int]", done.request.chain)
            left[job] -= 1
            if not left[job]:
                latencies[job] = clock.now() - arrivals[job].at_s
    return ServedLoad(latencies, clock.now(), engine.image_steps)


@dataclass(slots=True)
class _Clock:
    """Runs as the real one does, and can be put forward."""

    _start: float = field(default_factory=time.perf_counter)

    def now(self) -> float:
        return time.perf_counter() - self._start

    def skip_to(self, at_s: float) -> None:
        self._start -= max(0.0, at_s - self.now())
