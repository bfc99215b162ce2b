"""Shares of the work: of workers by their pace, of owners, and of a worker that comes late."""

from __future__ import annotations

import math
import time
from itertools import pairwise

from bench.fleet.rates import Figures
from bench.fleet.stub_service import OWNERS, PostedJob, StubPace, StubService, StubWorkers

_SETTLED_S = 2.0
# Images of a job, where many small jobs make a backlog.
_IMAGES = 5


def by_pace(service: StubService, pace: float, part: float, seconds: float, steps: int) -> Figures:
    """Measure the share of a worker beside a faster one, while there is work for both.

    Args:
        service: The service.
        pace: Image-steps a second of the faster one.
        part: Pace of the other one, as a part of it; 1 for equals.
        seconds: How long they are watched.
        steps: Steps of each image.
    """
    work_s = 2 * (seconds + _SETTLED_S)
    _backlog(service, pace * (1 + part) * work_s, steps)
    with service.workers([StubPace(pace), StubPace(pace * part)]) as both:
        time.sleep(_SETTLED_S)
        fast, slow = _worked(both, seconds)
    service.clear()
    return {
        f"share of a worker of {part:.2g} of the pace": _share(slow, fast),
        f"share of it by pace, {part:.2g}": part / (1 + part),
    }


def by_owner(service: StubService, count: int, steps: int) -> Figures:
    """Measure the share of an owner who posts when another's jobs are already in the queue.

    Args:
        service: The service.
        count: Jobs of the other owner; this one posts a quarter of that.
        steps: Steps of each image.
    """
    first = service.post([PostedJob(steps=steps)] * count)
    second = service.post([PostedJob(steps=steps, owner=OWNERS[1])] * (count // 4))
    with service.workers([StubPace()]):
        service.until_idle()
    theirs = [t.finished_at for t in service.times(second)]
    beside = [t for t in service.times(first) if t.finished_at <= max(theirs)]
    return {"share of the second owner": len(theirs) / (len(theirs) + len(beside))}


def late(
    service: StubService, pace: float, backlog_s: float, seconds: float, steps: int
) -> Figures:
    """Measure what a worker gets that starts beside an equal one with a long backlog.

    Args:
        service: The service.
        pace: Image-steps a second of each.
        backlog_s: Seconds of the first one's work that wait.
        seconds: How long they are watched after the second one's start.
        steps: Steps of each image.
    """
    _backlog(service, pace * backlog_s, steps)
    with service.workers([StubPace(pace)]) as early:
        time.sleep(2 * _SETTLED_S)
        with service.workers([StubPace(pace)]) as later:
            before, at = [early.image_steps()[0], later.image_steps()[0]], time.monotonic()
            points = [before]
            while time.monotonic() < at + seconds:
                time.sleep(seconds / 2)
                points.append([early.image_steps()[0], later.image_steps()[0]])
            held = service.shards_held()
    service.clear()
    (a, b), (c, d) = (
        [after - was for was, after in zip(*pair, strict=True)] for pair in pairwise(points)
    )
    waiting = held.pop("", 0)
    return {
        f"share of the late worker in its first {seconds / 2:g} s": _share(b, a),
        f"share in the next {seconds / 2:g} s": _share(d, c),
        "most shards in one worker's hands, of all": max(held.values(), default=0)
        / max(1, waiting + sum(held.values())),
    }


def _backlog(service: StubService, image_steps: float, steps: int) -> None:
    """Post so much work as small jobs."""
    job = PostedJob(_IMAGES, steps)
    service.post([job] * round(image_steps / job.image_steps))


def _worked(workers: StubWorkers, seconds: float) -> list[int]:
    """Return the image-steps of each worker in so many seconds from now."""
    before = workers.image_steps()
    time.sleep(seconds)
    return [after - was for was, after in zip(before, workers.image_steps(), strict=True)]


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else math.nan
