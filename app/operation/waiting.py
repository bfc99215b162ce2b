"""What waits for each model, in image-steps and in seconds of one worker. Autoscalers go by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from statistics import fmean

from redis.asyncio import Redis
from redis.exceptions import RedisError

from models.checkpoints.catalog import Card
from worker.jobs.keys import PACES
from worker.jobs.worker_registry import WorkerInfo

# The guess for a model that no worker has ever run. Two CPU cores made 53 to 573.
_GUESSED_GFLOP_PER_S = 100.0
_REMEMBERED_S = 30 * 86_400


def image_steps_left(entries: Iterable[bytes], cards: Mapping[str, Card]) -> dict[str, int]:
    """Add up the image-steps left of each model's open jobs.

    Args:
        entries: Values of the hash `LEFT` (worker/jobs/keys.py).
        cards: The models' cards by name. The result has all of them, also where nothing waits.
    """
    left = dict.fromkeys(cards, 0)
    for entry in entries:
        cost, _, _, model, _ = entry.decode().split(" ", 4)
        left[model] = left.get(model, 0) + int(cost)
    return {
        model: cost // cards[model].cost_per_image_step if model in cards else cost
        for model, cost in left.items()
    }


def measured_paces(workers: Iterable[WorkerInfo]) -> dict[str, float]:
    """Return image-steps a second by model: the mean of the live workers that have it."""
    rates: dict[str, list[float]] = {}
    for worker in workers:
        for model in worker.models:
            rates.setdefault(model, []).append(worker.pace(model).image_steps_per_s)
    return {model: fmean(found) for model, found in rates.items()}


def image_seconds(
    left: Mapping[str, int], paces: Mapping[str, float], cards: Mapping[str, Card]
) -> dict[str, float]:
    """Return the seconds that one worker would need for what is left of each model.

    The pace of a model without one is guessed from the cost on its card.
    A model without a card as well is left out.
    """
    rates = {name: _guessed_pace(card) for name, card in cards.items()} | dict(paces)
    return {model: steps / rates[model] for model, steps in left.items() if model in rates}


async def remember_paces(
    redis: Redis, remembered: Mapping[str, float], measured: Mapping[str, float]
) -> None:
    """Save what has changed by more than a tenth, for the time when no worker is alive."""
    changed = {
        model: pace
        for model, pace in measured.items()
        if abs(pace - remembered.get(model, 0.0)) > pace / 10
    }
    if not changed:
        return
    # A full server refuses the write; the next scrape tries again.
    with suppress(RedisError):
        async with redis.pipeline(transaction=False) as pipe:
            for model, pace in changed.items():
                pipe.hset(PACES, model, pace)
            pipe.expire(PACES, _REMEMBERED_S)
            await pipe.execute()


def _guessed_pace(card: Card) -> float:
    return _GUESSED_GFLOP_PER_S / max(card.gflop_per_image_step, 0.001)
