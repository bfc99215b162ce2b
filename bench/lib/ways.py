"""Ways to make the same images. What is around a chain differs in each; its bytes must not."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from bench.lib.model import engine_on
from bench.lib.other_process import OtherProcess
from bench.lib.work import Images, Work, draw, images_by_index, sampler_plans
from worker.engine.chain import ChainRequest, Snapshot
from worker.engine.engine import Engine
from worker.process.loaded_model import LoadedModel

Way = Callable[[LoadedModel, Work, random.Random], Images]


def ways(model: LoadedModel, threads: int) -> dict[str, Way]:
    """Return the ways by their names in the table.

    Args:
        model: The model, whose batch sizes are each used alone.
        threads: Threads of this process; other processes use 1, 2 and as many.
    """
    batch_sizes = {
        f"always {size} at a time": OneBatchSize(size) for size in model.calibration.batch_sizes
    }
    processes = {
        f"halfway to another process, {_threads(n)} there": OtherProcess(n)
        for n in sorted({1, 2, threads})
    }
    return {
        "alone again": alone,
        "all at once": together,
        "in another order, in other slots": shuffled,
        **batch_sizes,
        "any few of them at a time, the others parked": any_few,
        "parked while others of any class and owner step": parked,
        "taken out at any step, put back later in any slot": set_aside,
        "joined at any step by other people's chains": joined,
        **processes,
    }


def alone(model: LoadedModel, work: Work, _: random.Random) -> Images:
    """Make each image with nothing else in the engine, which is the reference."""
    engine = engine_on(model, model.calibration.batch_sizes)
    images = Images()
    for request in work.requests(model):
        images |= draw(engine, [request])
    return images


def together(model: LoadedModel, work: Work, _: random.Random) -> Images:
    """Make all images at once."""
    return draw(engine_on(model, model.calibration.batch_sizes), work.requests(model))


def shuffled(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Make all images at once, their chains in a random order and so in other slots."""
    requests = work.requests(model)
    engine = engine_on(model, model.calibration.batch_sizes)
    return draw(engine, chance.sample(requests, len(requests)))


class OneBatchSize:
    """A way with batches of one size, padded where chains run out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, model: LoadedModel, work: Work, _: random.Random) -> Images:
        """Make the images of the work."""
        return draw(engine_on(model, [self.size]), work.requests(model))


def any_few(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Make all images, with a random few of the chains in each step."""
    engine = engine_on(model, model.calibration.batch_sizes)
    images = Images()
    requests = work.requests(model)
    engine.submit(requests)
    inside = [request.index for request in requests]
    while inside:
        few = chance.randint(1, min(len(inside), engine.batch_sizes.largest))
        images |= images_by_index(engine.step(only=chance.sample(inside, few)))
        inside = [index for index in inside if index not in images]
    return images


def parked(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Make far more images at once than a batch holds, for many jobs, owners and both priorities.

    So the scheduler parks most of the chains at any step.
    """

    def reassigned(request: ChainRequest) -> ChainRequest:
        return replace(
            request,
            job=chance.randrange(50),
            owner=str(chance.randrange(5)),
            interactive=chance.random() < 0.5,
        )

    requests = map(reassigned, work.requests(model))
    return draw(engine_on(model, model.calibration.batch_sizes), requests)


def set_aside(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Make all images, while chains leave as snapshots before every step, and some come back."""
    engine = engine_on(model, model.calibration.batch_sizes)
    images = Images()
    waiting = deque(work.requests(model))
    inside: set[int] = set()
    outside: list[Snapshot] = []
    while len(images) < work.images:
        new = [waiting.popleft() for _ in range(min(len(waiting), chance.randrange(9)))]
        back = [
            outside.pop(chance.randrange(len(outside)))
            for _ in range(min(len(outside), chance.randrange(9)))
        ]
        engine.submit(new)
        engine.restore(back)
        inside |= {request.index for request in new}
        inside |= {snapshot.request.index for snapshot in back}
        images |= images_by_index(engine.settle())
        inside -= images.keys()
        leaving = chance.sample(sorted(inside), min(len(inside), chance.randrange(5)))
        outside += _take_out(engine, leaving)
        images |= images_by_index(engine.step())
        inside -= images.keys() | {snapshot.request.index for snapshot in outside}
    return images


def _take_out(engine: Engine, chains: list[int]) -> list[Snapshot]:
    taken = engine.snapshot(chains)
    engine.cancel(chains)
    return taken


def joined(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Make all images, while a few chains come before every step, ours and strangers' in turn.

    The strangers' are of any length.
    """
    engine = engine_on(model, model.calibration.batch_sizes)
    images = Images()
    waiting = deque(
        request
        for ours in work.requests(model)
        for request in (ours, _stranger(model, work, ours.index, chance))
    )
    while waiting or len(engine):
        count = min(len(waiting), engine.room, chance.randrange(20))
        engine.submit([waiting.popleft() for _ in range(count)])
        images |= images_by_index(engine.step())
    return images


def _stranger(model: LoadedModel, work: Work, number: int, chance: random.Random) -> ChainRequest:
    plan = chance.choice(sampler_plans(model, chance.randint(1, 2 * work.steps)))
    return ChainRequest(
        f"stranger {number}", "strangers", plan, chance.randrange(2**53), chance.randrange(2**32)
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
