"""A worker that loads models as jobs wait for them, turn by turn and on a clock of the test."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from redis import Redis

from models.checkpoints.catalog import Card
from tests.support.clock import SimulatedClock
from tests.support.jobs import make_recipe, post_job, state_of
from worker.__main__ import OfferedModels, build, load_models
from worker.jobs.keys import png_key
from worker.process.intake import Intake
from worker.process.models.offers import needed_bytes
from worker.results.in_redis import InRedis
from worker.settings import WorkerSettings

POOL = 192


class TurningWorker:
    """A worker of the models below a folder, whose threads take turns in this one.

    Attributes:
        clock: the time, which passes by half a second a turn.
        loop: the worker.
    """

    def __init__(self, redis: Redis, root: Path, names: tuple[str, ...] = (), **settings: Any):
        self.clock = SimulatedClock()
        options = {"precision": "fp32", "pool_images": POOL} | settings
        chosen = WorkerSettings(models_dir=root, models=names, **options)
        device = torch.device("cpu")
        offered = OfferedModels(chosen, device, self.clock)
        models = load_models(chosen, device, offered.faults)
        self.loop = build(redis, models, "cpu", InRedis(), offered=offered, clock=self.clock)
        parts = self.loop.parts
        parts.shards.heartbeat()
        self._keep = next(task.run_once for task in parts.tasks if task.name == "models")
        self._intake = Intake(
            parts.shards,
            parts.writer,
            self.loop.models,
            parts.load,
            parts.messages,
            poll_every_s=0.0,
            clock=self.clock,
        )

    def turn(self) -> None:
        """Let each thread have a turn."""
        self._keep()
        self._intake.run_once()
        messages = self.loop.parts.messages
        while not messages.empty():
            self.loop.handle(messages.get_nowait())
        if self.loop.active:
            self.loop.run_once()
        self.loop.parts.sender.flush()
        if self.loop.parts.saver.copies:
            self.loop.parts.saver.run_once()
        self.clock.pass_s(0.5)

    def run(self, redis: Redis, *jobs: str, turns: int = 400) -> None:
        """Take turns until the jobs have ended.

        Raises:
            AssertionError: they have not after so many turns.
        """
        for _ in range(turns):
            if all(state_of(redis, job) in ("finished", "failed") for job in jobs):
                return
            self.turn()
        raise AssertionError([state_of(redis, job) for job in jobs])

    @property
    def loads(self) -> dict[str, int]:
        """How often each model was loaded after the start."""
        return self.loop.parts.counters.loads

    @property
    def image_steps(self) -> int:
        """The image-steps that were made of all models."""
        return sum(self.loop.parts.counters.image_steps.values())

    @property
    def served(self) -> set[str]:
        """The keys of the models in memory."""
        return set(self.loop.models)


def bytes_of(card: Card) -> int:
    """Return the memory that a model takes in these workers."""
    return needed_bytes(card, POOL)


def post_for(redis: Redis, card: Card, job: str, **options: Any) -> str:
    """Post a job of a model, under an id that begins with `job`; return the id."""
    whole = job.ljust(32, "0")
    steps = options.pop("steps", 4)
    post_job(redis, make_recipe(card.sha256, model=card.name, steps=steps), job=whole, **options)
    return whole


def pictures(redis: Redis, job: str) -> dict[int, str]:
    """Return the hashes of the PNGs of a job, by index."""
    found = redis.hgetall(png_key(job))
    return {int(index): hashlib.sha256(png).hexdigest() for index, png in found.items()}
