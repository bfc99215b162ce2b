"""Intake of shards from the queue as room appears, and of news about jobs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection

from redis import Redis
from redis.client import PubSub

from worker.jobs.domain import SHARD_IMAGES, Priority, Shard, job_of
from worker.jobs.keys import CHANGES, IDLE, PREVIEWS, rotation_name
from worker.jobs.worker_registry import Pace
from worker.logs import bound, event
from worker.process.job_writer import Elsewhere, JobWriter, Start, Started
from worker.process.load import WorkerLoad, wanted_classes
from worker.process.loaded_model import knows
from worker.process.messages import JobEnded, MessageQueue, ShardTaken, WorkerIdle
from worker.process.models.served_models import ServedModels, Version
from worker.process.previews import PreviewSender
from worker.process.shard_leases import BadShard, ForeignShard, Lease, Room, ShardLeases
from worker.results.store import StoreFault

log = logging.getLogger(__name__)
# How long a published change may go unnoticed if the listener missed it.
POLL_EVERY_S = 0.5
SAVED_WITHIN_S = 30.0
# Shards that one round trip takes at most: as many as a whole one has images. That costs
# the server 2.3 ms.
TAKEN_AT_ONCE = SHARD_IMAGES
# How often a worker with room asks the others to hand back what they do not run.
ASKS_EVERY_S = 1.0
# How long a rotation is not asked when all that waits in it is for workers of another version.
FOREIGN_PAUSE_S = 10.0
FOREIGN_WARNING_EVERY_S = 60.0
# How long weights may be unknown before jobs that need them fail: other processes look at the
# folders of models at other moments.
GONE_AFTER_S = 10.0
# Shards for other workers that are put back before the pause, at most.
_MOST_FOREIGN = 1000
# The pause for shards of another fingerprint, for each shard that was put back, and at least. To
# take and put back one costs the server 0.14 to 0.18 ms, so a worker takes 2 % of its time.
ELSEWHERE_PAUSE_S = 0.02
ELSEWHERE_LEAST_S = 1.0


class Intake:
    """Takes shards from the queue, as `wanted_classes` decides, and hands them to the loop.

    Suspects run without others: the next shard waits until they have passed the point where workers
    were lost. Those with one loss come up to SUSPECTS_AT_ONCE together, those with more alone.

    If nothing waits and no batch is full, it asks the other workers for shards that they hold but
    do not run. What it then gets is at most a batch, all of which runs at once: so no shard goes to
    and fro.

    While a fleet is upgraded, shards wait that only newer workers can read. The intake puts them at
    the back of their queues. When it meets one again and got none that it can run in between, it
    leaves that rotation to other workers for a while. Shards of a job that workers of another
    fingerprint draw are put back in the same way, for as long as one of those lives. So are shards
    of weights that are not in memory, until they are. Jobs of weights that are nowhere any more
    fail.
    """

    def __init__(
        self,
        shards: ShardLeases,
        writer: JobWriter,
        models: ServedModels,
        load: WorkerLoad,
        messages: MessageQueue,
        is_held_back: Callable[[], bool] = lambda: False,
        others_fingerprints: Callable[[str], Collection[str]] = lambda model: (),
        slowed: Callable[[], float] = lambda: 1.0,
        *,
        poll_every_s: float = POLL_EVERY_S,
        saved_within_s: float = SAVED_WITHIN_S,
        clock: Callable[[], float] = time.monotonic,
        others_have: Callable[[Version], bool] = lambda version: False,
    ) -> None:
        """Make an intake that has taken nothing yet.

        Args:
            shards: the worker's side of the queue.
            writer: starts and fails jobs, and reads saved chains.
            models: the models that the worker has in memory.
            load: what the worker holds; the intake adds to it.
            messages: the way to the loop.
            is_held_back: tells whether too many results wait to be sent to take more shards.
            others_fingerprints: tells the fingerprints of other living workers that have a model.
            slowed: tells how many times as long as calibrated a step takes now.
            poll_every_s: pause before an empty queue is asked again, in seconds.
            saved_within_s: seconds for which the intake waits for a results store that does not
                give the saved chains of a shard. After that they are computed again.
            clock: the time in seconds, from any beginning.
            others_have: tells whether another living worker has a model of these weights.
        """
        self._others_have = others_have
        # When shards of weights that nobody has were met first.
        self._missed_at: dict[Version, float] = {}
        self._shards = shards
        self._writer = writer
        self._models = models
        self._load = load
        self._messages = messages
        self._is_held_back = is_held_back
        self._others_fingerprints = others_fingerprints
        self._slowed = slowed
        self._poll_every_s = poll_every_s
        self._saved_within_s = saved_within_s
        self._clock = clock
        # Since when the results store has not given the chains of the shard that was taken.
        self._unread_since: float | None = None
        # Shards that are not handed on yet. Their leases are prolonged, so no other worker takes
        # them.
        self._taken: list[Lease] = []
        # Shards that another worker asked for, until Redis has taken them back.
        self._parked: list[Lease] = []
        # By rotation: the shards for other workers that were met since its last pause, or since a
        # shard for this one came.
        self._foreign: dict[str, set[str]] = {}
        # By rotation: when it is asked again.
        self._paused_until: dict[str, float] = {}
        self._warned_at = -math.inf
        self._asked_at = -math.inf
        # Whether other workers have been asked since a batch was full.
        self._has_asked = False

    def run_once(self) -> None:
        """Hand back what others asked for, take some shards and hand them on, or wait a moment.

        After an error, the next call goes on with the shards that were taken.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store does not give a shard's saved chains.
        """
        self._load.changed.clear()
        self._hand_back()
        if self._taken or self._take():
            self._hand_on()
        else:
            self._load.changed.wait(self._poll_every_s)

    def wanted(self) -> dict[str, Room]:
        """Return the rotations to take a shard of, with how much is taken of each."""
        if self._is_held_back() or self._load.suspects:
            return {}
        now = self._clock()
        is_lean = self._has_asked or now < self._load.lean_until
        paces = self._paces()
        at_hand_s = {name: self._at_hand_s(name, pace) for name, pace in paces.items()}
        taking = self._models.taking()
        wanted = {
            rotation_name(priority, name): room
            for name, pace in paces.items()
            if name in taking
            for priority, room in wanted_classes(
                taking[name].capacity,
                pace,
                *(self._load.at_hand(name, priority) for priority in Priority),
                others_s=sum(at_hand_s.values()) - at_hand_s[name],
                is_lean=is_lean,
            ).items()
        }
        # only to fail them
        gone = Room(SHARD_IMAGES, SHARD_IMAGES)
        wanted |= {rotation_name(p, name): gone for name in self._models.gone for p in Priority}
        return {
            name: room
            for name, room in wanted.items()
            if now >= self._paused_until.get(name, -math.inf)
        }

    def _paces(self) -> dict[str, Pace]:
        slowed = self._slowed()
        taking = self._models.taking()
        return {name: Pace.fit(model.info.seconds, slowed) for name, model in taking.items()}

    def _at_hand_s(self, model: str, pace: Pace) -> float:
        """Return the seconds that all work at hand of a model takes."""
        at_hand = (self._load.at_hand(model, priority) for priority in Priority)
        return sum(held.image_steps for held in at_hand) / pace.image_steps_per_s

    def _is_underfilled(self) -> bool:
        """Tell whether no model has a full batch at hand."""
        return all(
            sum(self._load.images(name, priority) for priority in Priority) < pace.largest
            for name, pace in self._paces().items()
        )

    def _hand_back(self) -> None:
        while not self._load.parked.empty():
            self._parked += self._load.parked.get()
        if self._parked:
            self._shards.hand_back(self._parked)
            log.info(
                "%d shards go back, since another worker has nothing or another model waits",
                len(self._parked),
                extra=event("shards.shared"),
            )
            self._parked.clear()

    def _take(self) -> bool:
        """Take shards; False if there are none that this worker can run."""
        is_underfilled, now = self._is_underfilled(), self._clock()
        if not is_underfilled:
            self._has_asked = False
        wanted = self.wanted()
        asks = bool(wanted) and is_underfilled and now - self._asked_at >= ASKS_EVERY_S
        taken = self._shards.take_up_to(TAKEN_AT_ONCE, wanted, asks=asks)
        if asks and not taken:
            self._asked_at, self._has_asked = now, True
        self._taken = [lease for lease in taken if isinstance(lease, Lease)]
        for bad in taken:
            if isinstance(bad, ForeignShard):
                bad.put_back()
                self._note_version(bad.shard_id, bad.rotation)
            elif isinstance(bad, BadShard):
                message = (
                    "the job was written by another version of the service than the worker's; "
                    "post it again"
                )
                self._writer.fail(job_of(bad.shard_id), "unknown_version", message)
                bad.discard()
        return bool(taken)

    def _note_foreign(self, shard_id: str, rotation: str, pause_s: Callable[[int], float]) -> None:
        """Pause the rotation if the shard was met before, with no shard that we run in between.

        Args:
            shard_id: what was put back.
            rotation: where it waits.
            pause_s: gives the pause, by the number of shards that were put back.
        """
        now = self._clock()
        met = self._foreign.setdefault(rotation, set())
        if shard_id in met or len(met) >= _MOST_FOREIGN:
            self._paused_until[rotation] = now + pause_s(len(met))
            met.clear()
        elif now >= self._paused_until.get(rotation, -math.inf):
            met.add(shard_id)

    def _note_version(self, shard_id: str, rotation: str) -> None:
        self._note_foreign(shard_id, rotation, lambda put_back: FOREIGN_PAUSE_S)
        now = self._clock()
        if now - self._warned_at >= FOREIGN_WARNING_EVERY_S:
            self._warned_at = now
            log.warning(
                "shard %s was written by another version of the service; it waits for a worker of "
                "that version; install one version everywhere",
                shard_id,
                extra=event("shard.foreign", job=job_of(shard_id), shard=shard_id),
            )

    def _leave_foreign(self) -> None:
        """Put back what asks for a sampler or a variance that this version does not know."""
        for lease in list(self._taken):
            shard = lease.shard
            rotation = rotation_name(shard.priority, shard.recipe.model)
            if not knows(shard.recipe):
                self._taken.remove(lease)
                self._shards.give_back(lease, "back")
                self._note_version(shard.id, rotation)

    def _leave_absent(self) -> None:
        """Put back what asks for weights that are not in memory; fail it if they are nowhere."""
        for lease in list(self._taken):
            shard = lease.shard
            if self._models.find(shard.recipe) is not None:
                continue
            version = Version.of(shard.recipe)
            if self._is_gone(version):
                message = (
                    f"the weights {version.weights[:12]} of {version.name!r} that the job was "
                    "accepted with are gone; post it again"
                )
                self._writer.fail(shard.job, "wrong_weights", message)
                self._shards.finish(lease)
            else:
                self._models.ask_for(version)
                self._shards.give_back(lease, "back")
                rotation = rotation_name(shard.priority, version.name)
                self._note_foreign(shard.id, rotation, _elsewhere_pause_s)
            self._taken.remove(lease)

    def _is_gone(self, version: Version) -> bool:
        """Tell whether no living worker has had these weights for GONE_AFTER_S."""
        if self._models.is_offered(version) or self._others_have(version):
            self._missed_at.pop(version, None)
            return False
        if len(self._missed_at) >= _MOST_FOREIGN:
            self._missed_at.clear()
        now = self._clock()
        return now - self._missed_at.setdefault(version, now) >= GONE_AFTER_S

    def _hand_on(self) -> None:
        # Leases may have been lost while Redis was away.
        self._taken = [lease for lease in self._taken if self._shards.holds(lease)]
        self._leave_foreign()
        self._leave_absent()
        starts = [self._start_of(lease) for lease in self._taken]
        pairs = list(zip(self._taken, self._writer.start_all(starts), strict=True))
        # Those with saved chains come last: a results store that does not give them holds up no
        # other shard.
        pairs.sort(key=lambda pair: isinstance(pair[1], Started) and pair[1].has_chains)
        for lease, started in pairs:
            rotation = rotation_name(lease.shard.priority, lease.shard.recipe.model)
            if isinstance(started, Elsewhere):
                self._shards.give_back(lease, "back")
                self._note_foreign(lease.shard.id, rotation, _elsewhere_pause_s)
            elif started is None:
                self._shards.finish(lease)
            else:
                self._foreign.pop(rotation, None)
                with bound(**lease.log_fields):
                    saved = self._saved(lease.shard) if started.has_chains else None
                indices = [i for i in lease.shard.indices if i not in started.finished]
                self._load.add(lease.shard, len(indices))
                if lease.suspect:
                    self._load.add_suspect(lease)
                self._messages.put(ShardTaken(lease, indices, saved))
            self._taken.remove(lease)

    def _start_of(self, lease: Lease) -> Start:
        name = lease.shard.recipe.model
        model = self._models.find(lease.shard.recipe)
        return Start(
            lease.shard,
            lease.attempt,
            lease.fence,
            model.fingerprint if model else "",
            self._others_fingerprints(name),
        )

    def _saved(self, shard: Shard) -> bytes | None:
        """Return the shard's saved chains.

        If the results store does not give them for long, the answer is None: the chains are
        computed again, since other shards wait for this one.
        """
        now = self._clock()
        try:
            saved = self._writer.saved(shard)
            if saved is None:
                log.warning(
                    "shard %s begins anew: what was saved of it is gone",
                    shard.id,
                    extra=event(
                        "shard.begins_anew", job=shard.job, shard=shard.id, owner=shard.owner
                    ),
                )
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
                extra=event("shard.begins_anew", job=shard.job, shard=shard.id, owner=shard.owner),
            )
            saved = None
        self._unread_since = None
        return saved


def _elsewhere_pause_s(put_back: int) -> float:
    return min(FOREIGN_PAUSE_S, max(ELSEWHERE_LEAST_S, ELSEWHERE_PAUSE_S * put_back))


class ChangeListener:
    """Listens to what is published: changes of jobs, requests for previews, and idle workers.

    The intake and the result sender find the changes that it misses.
    """

    def __init__(
        self,
        redis: Redis,
        load: WorkerLoad,
        messages: MessageQueue,
        previews: PreviewSender,
        name: str,
        *,
        poll_every_s: float = POLL_EVERY_S,
    ) -> None:
        """Make a listener that subscribes in its first round.

        Args:
            redis: the job store.
            load: its `changed` is set when a shard may have come.
            messages: the way to the loop, for jobs that ended.
            previews: is asked for previews.
            name: the worker's, which hears itself too.
            poll_every_s: seconds for which one round waits for a message.
        """
        self._redis = redis
        self._load = load
        self._messages = messages
        self._previews = previews
        self._name = name
        self._poll_every_s = poll_every_s
        self._pubsub: PubSub | None = None

    def run_once(self) -> None:
        """Wait a moment for one message, and pass it on.

        Raises:
            RedisError: Redis did not answer, or refused.
        """
        if self._pubsub is None:
            pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
            pubsub.subscribe(CHANGES, PREVIEWS, IDLE)
            # Set only now: without its subscription it would hear nothing, for ever.
            self._pubsub = pubsub
        message = self._pubsub.get_message(timeout=self._poll_every_s)
        if message is None:
            return
        if message["channel"] == IDLE.encode():
            worker, *rotations = message["data"].decode().split("\n")
            if worker != self._name:
                self._messages.put(WorkerIdle(frozenset(rotations)))
            return
        job, detail = message["data"].decode().split()
        if message["channel"] == PREVIEWS.encode():
            self._previews.ask(job, int(detail))
        elif detail == "queued":
            self._load.changed.set()
        elif detail in ("cancelled", "failed", "deleted"):
            self._messages.put(JobEnded(job))
