"""What comes in: shards from the queue as room appears, and word of jobs that ended early."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from redis import Redis
from redis.client import PubSub

from worker.jobs.domain import SHARD_IMAGES, Priority, Shard, job_of
from worker.jobs.keys import CHANGES, PREVIEWS, queue_name
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.messages import JobEnded, MessageQueue, ShardTaken
from worker.process.previews import PreviewSender
from worker.process.shard_leases import BadShard, Lease, OwnerLimit, ShardLeases
from worker.results.store import StoreFault

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5  # should a published change have been missed
_SAVED_WITHIN_S = 30.0
_SMALL = 16  # a shard of this share of what would be left, or less, is small


class Intake:
    """Takes interactive shards while there is room for one, and bulk shards only to have two batches of their images at hand.

    A shard with which workers were lost is taken alone: the next one waits until it has passed the point where they were lost.
    A big job's later shards are left for other workers and never fill the places of jobs that somebody waits for: after the
    first there is still room for a shard, unless the pool holds only one. That first one has a place of its own, however many
    interactive shards wait: bulk work is always there for the scheduler's floor.

    An owner who holds more than what would be left gets only small shards, so that others, and its own small jobs, find room.
    """

    def __init__(
        self,
        shards: ShardLeases,
        results: JobWriter,
        models: Mapping[str, LoadedModel],
        load: WorkerLoad,
        inbox: MessageQueue,
        held_back: Callable[[], bool],
    ) -> None:
        self._shards, self._results, self._models, self._load, self._inbox = (
            shards,
            results,
            models,
            load,
            inbox,
        )
        self._held_back = held_back
        self._asked_at: float | None = (
            None  # for the saved chains of the shard that is taken, in vain
        )
        self._taken: Lease | None = (
            None  # kept until it is handed on: its lease is prolonged, so nobody else would run it
        )

    def run_once(self) -> None:
        self._load.changed.clear()
        self._taken = self._taken or self._next()
        if self._taken is None:
            self._load.changed.wait(_LOOK_EVERY_S)
        else:
            self._hand_on(self._taken)
            self._taken = None

    def _next(self) -> Lease | None:
        wanted = {} if self._held_back() or self._load.suspect else self._wanted()
        try:
            return self._shards.take(wanted, self._load.by_owner(), wanted)
        except BadShard as bad:
            message = "the job was written by another version of the service than the worker's; post it again"
            self._results.fail(job_of(bad.shard_id), "unknown_version", message)
            bad.discard()
            return None

    def _hand_on(self, lease: Lease) -> None:
        if not self._shards.holds(lease):  # lost while Redis was away
            return
        if not self._results.start(lease.shard, lease.attempt, lease.fence):
            self._shards.finish(lease)
            return
        finished = self._results.finished_indices(lease.shard)
        saved = self._saved(lease.shard)
        indices = [i for i in lease.shard.indices if i not in finished]
        self._load.add(lease.shard, len(indices))
        if lease.suspect:
            self._load.suspect = lease
        self._inbox.put(ShardTaken(lease, indices, saved))

    def _saved(self, shard: Shard) -> bytes | None:
        """Its chains. Where the results store does not give them for long they are drawn anew: others wait for this shard."""
        now = time.monotonic()
        try:
            saved = self._results.saved(shard)
        except StoreFault as fault:
            self._asked_at = self._asked_at or now
            if now - self._asked_at < _SAVED_WITHIN_S:
                raise
            log.warning(
                "shard %s begins anew: for %.0f s what was saved of it could not be read (%s)",
                shard.id,
                now - self._asked_at,
                fault,
            )
            saved = None
        self._asked_at = None
        return saved

    def _wanted(self) -> dict[str, OwnerLimit]:
        """The queues of which a shard would be taken."""
        wanted = {}
        for name, model in self._models.items():
            held, held_in_bulk = self._load.of(name, *Priority), self._load.of(name, Priority.BULK)
            left = model.capacity - held - SHARD_IMAGES  # once a shard is taken
            left_to_interactive = left - (0 if held_in_bulk else SHARD_IMAGES)
            if left_to_interactive >= 0 or not held:
                most, small = max(SHARD_IMAGES, left_to_interactive), left_to_interactive // _SMALL
                wanted[queue_name(Priority.INTERACTIVE, name)] = OwnerLimit(most, small)
            if (
                left >= (SHARD_IMAGES if held_in_bulk else 0) or not held
            ) and held_in_bulk < model.low_water:
                wanted[queue_name(Priority.BULK, name)] = OwnerLimit()
        return wanted


class ChangeListener:
    """Hears what is published: changes of state, of which those that it misses are found by the intake and the outbox, and who
    wants a preview.
    """

    def __init__(
        self, redis: Redis, load: WorkerLoad, inbox: MessageQueue, previews: PreviewSender
    ) -> None:
        self._redis, self._load, self._inbox, self._previews = redis, load, inbox, previews
        self._pubsub: PubSub | None = None

    def run_once(self) -> None:
        if self._pubsub is None:
            pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            pubsub.subscribe(CHANGES, PREVIEWS)
            self._pubsub = pubsub  # only now: unsubscribed, it would be deaf for ever
        message = self._pubsub.get_message(timeout=_LOOK_EVERY_S)
        if message is None:
            return
        job, said = message["data"].decode().split()
        if message["channel"] == PREVIEWS.encode():
            self._previews.ask(job, int(said))
        elif said == "queued":
            self._load.changed.set()
        elif said in ("cancelled", "failed", "deleted"):
            self._inbox.put(JobEnded(job))
