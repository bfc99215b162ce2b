"""Intake of shards from the queue as room appears, and of news about jobs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from redis import Redis
from redis.client import PubSub

from worker.jobs.domain import Priority, Shard, job_of
from worker.jobs.keys import CHANGES, PREVIEWS, rotation_name
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad, wanted_classes
from worker.process.loaded_model import LoadedModel
from worker.process.messages import JobEnded, MessageQueue, ShardTaken
from worker.process.previews import PreviewSender
from worker.process.shard_leases import BadShard, Lease, ShardLeases
from worker.results.store import StoreFault

log = logging.getLogger(__name__)
# How long a published change may go unnoticed if the listener missed it.
POLL_EVERY_S = 0.5
SAVED_WITHIN_S = 30.0
# Shards that one round trip takes at most, and no more than a whole one's images.
TAKEN_AT_ONCE = 16


class Intake:
    """Takes shards from the queue, as `wanted_classes` decides, and hands them to the loop.

    It takes a suspect alone: the next shard waits until the suspect has passed the point where
    workers were lost.
    """

    def __init__(
        self,
        shards: ShardLeases,
        writer: JobWriter,
        models: Mapping[str, LoadedModel],
        load: WorkerLoad,
        messages: MessageQueue,
        is_held_back: Callable[[], bool] = lambda: False,
        *,
        poll_every_s: float = POLL_EVERY_S,
        saved_within_s: float = SAVED_WITHIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an intake that has taken nothing yet.

        Args:
            shards: the worker's side of the queue.
            writer: starts and fails jobs, and reads saved chains.
            models: the models that the worker serves, by name.
            load: what the worker holds; the intake adds to it.
            messages: the way to the loop.
            is_held_back: tells whether too many results wait to be sent to take more shards.
            poll_every_s: pause before an empty queue is asked again, in seconds.
            saved_within_s: seconds for which the intake waits for a results store that does not
                give the saved chains of a shard. After that they are computed again.
            clock: the time in seconds, from any beginning.
        """
        self._shards = shards
        self._writer = writer
        self._models = models
        self._load = load
        self._messages = messages
        self._is_held_back = is_held_back
        self._poll_every_s = poll_every_s
        self._saved_within_s = saved_within_s
        self._clock = clock
        # Since when the results store has not given the chains of the shard that was taken.
        self._unread_since: float | None = None
        # Shards that are not handed on yet. Their leases are prolonged, so no other worker takes
        # them.
        self._taken: list[Lease] = []

    def run_once(self) -> None:
        """Take some shards and hand them on, or wait a moment for one.

        After an error, the next call goes on with the shards that were taken.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store does not give a shard's saved chains.
        """
        self._load.changed.clear()
        if self._taken or self._take():
            self._hand_on()
        else:
            self._load.changed.wait(self._poll_every_s)

    def wanted(self) -> dict[str, int]:
        """Return the rotations to take a shard of, with the images that there is room for."""
        if self._is_held_back() or self._load.suspect:
            return {}
        return {
            rotation_name(priority, name): room
            for name, model in self._models.items()
            for priority, room in wanted_classes(
                model.capacity,
                self._load.images(name, Priority.INTERACTIVE),
                self._load.images(name, Priority.BULK),
                model.low_water,
            ).items()
        }

    def _take(self) -> bool:
        """Take shards; False if there are none."""
        taken = self._shards.take_up_to(TAKEN_AT_ONCE, self.wanted())
        self._taken = [lease for lease in taken if isinstance(lease, Lease)]
        for bad in taken:
            if isinstance(bad, BadShard):
                message = (
                    "the job was written by another version of the service than the worker's; "
                    "post it again"
                )
                self._writer.fail(job_of(bad.shard_id), "unknown_version", message)
                bad.discard()
        return bool(taken)

    def _hand_on(self) -> None:
        # Leases may have been lost while Redis was away.
        self._taken = [lease for lease in self._taken if self._shards.holds(lease)]
        starts = [(lease.shard, lease.attempt, lease.fence) for lease in self._taken]
        pairs = list(zip(self._taken, self._writer.start_all(starts), strict=True))
        # Those with saved chains come last: a results store that does not give them holds up no
        # other shard.
        pairs.sort(key=lambda pair: pair[1] is not None and pair[1].has_chains)
        for lease, started in pairs:
            if started is None:
                self._shards.finish(lease)
            else:
                saved = self._saved(lease.shard) if started.has_chains else None
                indices = [i for i in lease.shard.indices if i not in started.finished]
                self._load.add(lease.shard, len(indices))
                if lease.suspect:
                    self._load.suspect = lease
                self._messages.put(ShardTaken(lease, indices, saved))
            self._taken.remove(lease)

    def _saved(self, shard: Shard) -> bytes | None:
        """Return the shard's saved chains.

        If the results store does not give them for long, the answer is None: the chains are
        computed again, since other shards wait for this one.
        """
        now = self._clock()
        try:
            saved = self._writer.saved(shard)
        except StoreFault as fault:
            if self._unread_since is None:
                self._unread_since = now
            if now - self._unread_since < self._saved_within_s:
                raise
            log.warning(
                "shard %s begins anew: for %.0f s what was saved of it could not be read (%s)",
                shard.id,
                now - self._unread_since,
                fault,
            )
            saved = None
        self._unread_since = None
        return saved


class ChangeListener:
    """Listens to what is published: changes of a job's state, and requests for previews.

    The intake and the result sender find the changes that it misses.
    """

    def __init__(
        self,
        redis: Redis,
        load: WorkerLoad,
        messages: MessageQueue,
        previews: PreviewSender,
        *,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        """Make a listener that subscribes in its first round.

        Args:
            redis: the job store.
            load: its `changed` is set when a shard may have come.
            messages: the way to the loop, for jobs that ended.
            previews: is asked for previews.
            poll_every_s: seconds for which one round waits for a message.
        """
        self._redis = redis
        self._load = load
        self._messages = messages
        self._previews = previews
        self._poll_every_s = poll_every_s
        self._pubsub: PubSub | None = None

    def run_once(self) -> None:
        """Wait a moment for one message, and pass it on.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        if self._pubsub is None:
            pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            pubsub.subscribe(CHANGES, PREVIEWS)
            # Set only now: without its subscription it would hear nothing, for ever.
            self._pubsub = pubsub
        message = self._pubsub.get_message(timeout=self._poll_every_s)
        if message is None:
            return
        job, detail = message["data"].decode().split()
        if message["channel"] == PREVIEWS.encode():
            self._previews.ask(job, int(detail))
        elif detail == "queued":
            self._load.changed.set()
        elif detail in ("cancelled", "failed", "deleted"):
            self._messages.put(JobEnded(job))
