"""What comes in: shards from the queue as room appears, and word of jobs that ended early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue

from redis import Redis
from redis.client import PubSub

from worker.contract import CHANGES, SHARD_IMAGES, Priority, queue_name
from worker.loaded import LoadedModel
from worker.results import Results
from worker.rq_worker import Lease, ShardWorker

_LOOK_EVERY_S = 0.5  # should a published change have been missed


@dataclass(frozen=True, slots=True)
class Taken:
    """A shard to run, the images of it that are not finished yet, and its chains as another worker saved them."""

    lease: Lease
    indices: list[int]
    saved: bytes | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that finished, failed, was cancelled or deleted: whatever runs of it is to leave."""

    job: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A lease that is ours no longer. Its shard may be here again under another lease, which stays."""

    lease: Lease


Inbox = SimpleQueue[Taken | Ended | Lost]


class Load:
    """Images that the worker holds, by model; written by the intake and by the loop."""

    def __init__(self) -> None:
        self._images: dict[str, int] = {}
        self._lock = threading.Lock()
        self.changed = threading.Event()

    def add(self, model: str, images: int) -> None:
        with self._lock:
            self._images[model] = self._images.get(model, 0) + images
        self.changed.set()

    def of(self, model: str) -> int:
        return self._images.get(model, 0)


class Intake:
    """Takes interactive shards while there is room for one, and bulk shards only when the engine could run short.

    So a big job's later shards are left for other workers, and never fill the places of jobs that somebody waits for.
    """

    def __init__(
        self,
        shards: ShardWorker,
        results: Results,
        models: Mapping[str, LoadedModel],
        load: Load,
        inbox: Inbox,
        held_back: Callable[[], bool],
    ) -> None:
        self._shards, self._results, self._models, self._load, self._inbox = shards, results, models, load, inbox
        self._held_back = held_back
        self._taken: Lease | None = None  # kept until it is handed on: its lease is prolonged, so nobody else would run it

    def turn(self) -> None:
        self._load.changed.clear()
        self._taken = self._taken or self._next()
        if self._taken is None:
            self._load.changed.wait(_LOOK_EVERY_S)
        else:
            self._hand_on(self._taken)
            self._taken = None

    def _next(self) -> Lease | None:
        queues = [] if self._held_back() else self._wanted()
        return self._shards.take(queues) if queues else None

    def _hand_on(self, lease: Lease) -> None:
        if not self._results.start(lease.shard, lease.attempt):
            self._shards.finish(lease)
            return
        finished = self._results.finished_indices(lease.shard)
        saved = self._results.saved(lease.shard)
        indices = [i for i in lease.shard.indices if i not in finished]
        self._load.add(lease.shard.recipe.model, len(indices))
        self._inbox.put(Taken(lease, indices, saved))

    def _wanted(self) -> list[str]:
        def has_room(name: str, model: LoadedModel) -> bool:
            return model.capacity - self._load.of(name) >= SHARD_IMAGES

        urgent = [queue_name(Priority.INTERACTIVE, name) for name, model in self._models.items() if has_room(name, model)]
        patient = [
            queue_name(Priority.BULK, name)
            for name, model in self._models.items()
            if has_room(name, model) and self._load.of(name) < model.low_water
        ]
        return urgent + patient


class Listener:
    """Hears changes of state as they are published; what it misses is found by the intake and the outbox."""

    def __init__(self, redis: Redis, load: Load, inbox: Inbox) -> None:
        self._redis, self._load, self._inbox = redis, load, inbox
        self._pubsub: PubSub | None = None

    def turn(self) -> None:
        if self._pubsub is None:
            self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            self._pubsub.subscribe(CHANGES)
        message = self._pubsub.get_message(timeout=_LOOK_EVERY_S)
        if message is None:
            return
        job, state = message["data"].decode().split()
        if state == "queued":
            self._load.changed.set()
        elif state in ("cancelled", "failed", "deleted"):
            self._inbox.put(Ended(job))
