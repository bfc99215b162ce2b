"""Ways to make the same images. What is around a chain differs in each; its bytes may not."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from bench.lib.elsewhere import Elsewhere
from bench.lib.model import engine_on
from bench.lib.work import Images, Work, draw, pictures, plans_of
from worker.engine.chain import ChainRequest, Snapshot
from worker.engine.engine import Engine
from worker.process.loaded_model import LoadedModel

Way = Callable[[LoadedModel, Work, random.Random], Images]


def ways(model: LoadedModel, threads: int) -> dict[str, Way]:
    """The rows of the table, by what is done."""
    batch_sizes = {
        f"always {batch_size} at a time": Bucket(batch_size)
        for batch_size in model.calibration.batch_sizes
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
        **{
            f"halfway to another process, {_threads(n)} there": Elsewhere(n)
            for n in sorted({1, 2, threads})
        },
    }


def alone(model: LoadedModel, work: Work, _: random.Random) -> Images:
    """Nothing else in the engine: the reference."""
    engine, images = engine_on(model, model.calibration.batch_sizes), Images()
    for request in work.requests(model):
        images |= draw(engine, [request])
    return images


def together(model: LoadedModel, work: Work, _: random.Random) -> Images:
    return draw(engine_on(model, model.calibration.batch_sizes), work.requests(model))


def shuffled(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    requests = work.requests(model)
    return draw(
        engine_on(model, model.calibration.batch_sizes), chance.sample(requests, len(requests))
    )


class Bucket:
    """Batches of one size, padded where chains run out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, model: LoadedModel, work: Work, _: random.Random) -> Images:
        return draw(engine_on(model, [self.size]), work.requests(model))


def any_few(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Any number of any of them takes each step."""
    engine, images = engine_on(model, model.calibration.batch_sizes), Images()
    requests = work.requests(model)
    engine.submit(requests)
    inside = [request.index for request in requests]
    while inside:
        images |= pictures(
            engine.step(
                only=chance.sample(
                    inside, chance.randint(1, min(len(inside), engine.batch_sizes.largest))
                )
            )
        )
        inside = [index for index in inside if index not in images]
    return images


def parked(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Far more chains than a batch holds, in two classes: the scheduler parks most of them at any step."""

    def anyones(request: ChainRequest) -> ChainRequest:
        return replace(
            request,
            job=chance.randrange(50),
            owner=str(chance.randrange(5)),
            interactive=chance.random() < 0.5,
        )

    return draw(engine_on(model, model.calibration.batch_sizes), map(anyones, work.requests(model)))


def set_aside(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """Before every step some chains leave as snapshots, and some come back."""
    engine, images = engine_on(model, model.calibration.batch_sizes), Images()
    waiting, inside, outside = deque(work.requests(model)), set[int](), list[Snapshot]()
    while len(images) < work.images:
        come = [waiting.popleft() for _ in range(min(len(waiting), chance.randrange(9)))]
        back = [
            outside.pop(chance.randrange(len(outside)))
            for _ in range(min(len(outside), chance.randrange(9)))
        ]
        engine.submit(come)
        engine.restore(back)
        inside |= {request.index for request in [*come, *(snapshot.request for snapshot in back)]}
        images |= pictures(engine.settle())
        inside -= images.keys()
        outside += _take_out(
            engine, chance.sample(sorted(inside), min(len(inside), chance.randrange(5)))
        )
        images |= pictures(engine.step())
        inside -= images.keys() | {snapshot.request.index for snapshot in outside}
    return images


def _take_out(engine: Engine, chains: list[int]) -> list[Snapshot]:
    taken = engine.snapshot(chains)
    engine.cancel(chains)
    return taken


def joined(model: LoadedModel, work: Work, chance: random.Random) -> Images:
    """A few chains come before every step, ours and strangers' in turn, and the strangers' are of any length."""
    engine, images = engine_on(model, model.calibration.batch_sizes), Images()
    waiting = deque(
        request
        for ours in work.requests(model)
        for request in (ours, _stranger(model, work, ours.index, chance))
    )
    while waiting or len(engine):
        engine.submit(
            [waiting.popleft() for _ in range(min(len(waiting), engine.room, chance.randrange(20)))]
        )
        images |= pictures(engine.step())
    return images


def _stranger(model: LoadedModel, work: Work, number: int, chance: random.Random) -> ChainRequest:
    plan = chance.choice(plans_of(model, chance.randint(1, 2 * work.steps)))
    return ChainRequest(
        f"stranger {number}", "strangers", plan, chance.randrange(2**53), chance.randrange(2**32)
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
