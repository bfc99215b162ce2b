"""Loads the models that jobs wait for, and puts away others, within a bound on memory."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from redis import Redis

from models.checkpoints.added.kept import forget
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.diffusers_format import Checkpoint, load
from models.networks.memory import is_out_of_memory
from worker.backends.host import give_back_memory
from worker.jobs.domain import Priority
from worker.jobs.keys import LEFT, ROTATION_PREFIX, job_key, rotation_name
from worker.jobs.worker_registry import ModelInfo, WorkerCounters, WorkerInfo
from worker.logs import event
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.messages import MessageQueue, ModelLeaves, ModelRead
from worker.process.models.offers import Offer, Offers, needed_bytes
from worker.process.models.residency import Choice, Resident, Wanted, choose, slice_s
from worker.process.models.served_models import ServedModels, Version, older_key
from worker.redaction import client_reason

log = logging.getLogger(__name__)
# How often it looks at what waits, if a model is not in memory.
POLL_EVERY_S = 0.5
# How often it looks at the folders of models.
LOOK_EVERY_S = 2.0
# How often it asks which kept weights open jobs need, and how long these are kept in any case: the
# API may have accepted a job just before it saw the new weights.
KEPT_EVERY_S = 30.0
KEPT_FOR_S = 60.0
# A model that could not be loaded is tried again after so long, then after twice that.
RETRY_S = 30.0
LONGEST_RETRY_S = 600.0
# What was asked for counts for so long.
_ASKED_FOR_S = 30.0

# Makes a model ready to step. It calls what it is given between two steps that it measures.
Place = Callable[[Offer, Checkpoint, Callable[[], None]], LoadedModel]


@dataclass(slots=True)
class _Fault:
    """Why a model cannot be loaded."""

    reason: str
    stamp: object
    retry_at: float
    pause_s: float = RETRY_S


@dataclass(slots=True)
class _Times:
    """When a model was loaded and used, in seconds, and how long loading took."""

    loaded_at: float
    used_at: float
    load_s: float


class ModelKeeper:
    """Decides in a thread of its own which models are in memory.

    It reads weights while the loop steps. The loop then makes the network ready, since a device is
    used by one thread, and frees it.

    A model that cannot be loaded keeps no other from being served. It is tried again when its files
    change, or after a pause if jobs wait for it. Until then these wait.
    """

    def __init__(
        self,
        offers: Offers,
        served: ServedModels,
        work: WorkerLoad,
        messages: MessageQueue,
        redis: Redis,
        place: Place,
        *,
        bound: int,
        pool_images: int,
        check: Callable[[Offer], None] = lambda offer: None,
        faults: Mapping[str, str] | None = None,
        counters: WorkerCounters | None = None,
        serve: Callable[[str], object] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a keeper of the models that were loaded at the start.

        Args:
            offers: what can be loaded.
            served: what is in memory.
            work: what the worker holds.
            messages: the way to the loop.
            redis: the job store.
            place: makes a model ready to step. The loop's thread calls it.
            bound: bytes that all models may take together.
            pool_images: images that a model's pool holds at most.
            check: raises ValueError for a model that cannot be served here.
            faults: by name, why models could not be loaded at the start.
            counters: where loads are counted.
            serve: is called with the name of each model that is added or loaded.
            clock: the time in seconds, from any beginning.
        """
        self._offers = offers
        self._served = served
        self._work = work
        self._messages = messages
        self._redis = redis
        self._place = place
        self.bound = bound
        self._pool_images = pool_images
        self._check = check
        self._counters = counters or WorkerCounters()
        self._serve = serve
        self._clock = clock
        self._lock = threading.Lock()
        now = clock()
        self._look_at = now + LOOK_EVERY_S
        self._kept_at = now + KEPT_EVERY_S
        self._kept_since: dict[Version, float] = {}
        self._asked_at: dict[Version, float] = {}
        self._waiting_since: dict[Version, float] = {}
        self._leaves_since: dict[str, float] = {}
        self._placing: Version | None = None
        self._faults: dict[Version, _Fault] = {}
        # versions that were loaded before, or were not to be: they are loaded when jobs wait
        self._known: set[Version] = set()
        self._names = set(offers.names)
        self._infos: dict[str, ModelInfo] = {}
        self._times = {key: _Times(now, now, 0.0) for key in served}
        for offer in offers:
            reason = (faults or {}).get(offer.card.name)
            self._known.add(offer.version)
            if reason and not offer.is_kept:
                self._faults[offer.version] = _Fault(reason, offer.stamp(), now + RETRY_S)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the models in memory take."""
        return sum(_bytes_of(model) for model in self._served.values())

    @property
    def loading(self) -> tuple[str, ...]:
        """Names of models that are being loaded."""
        placing = self._placing
        return (placing.name,) if placing else ()

    @property
    def unserved(self) -> dict[str, str]:
        """Why models cannot be loaded, by name."""
        with self._lock:
            faults = {version.name: fault.reason for version, fault in self._faults.items()}
        found = self._offers.faults | faults
        return {name: self._offers.without_roots(reason) for name, reason in found.items()}

    @property
    def infos(self) -> dict[str, ModelInfo]:
        """How models run that are in memory or were put away, by name."""
        with self._lock:
            found = dict(self._infos)
        resident = {
            model.card.name: model.info for key, model in self._served.items() if "@" in key
        }
        return found | resident | {k: m.info for k, m in self._served.items() if "@" not in k}

    def described(self, info: WorkerInfo) -> WorkerInfo:
        """Return what a worker says of itself, with what is loaded and what cannot be."""
        return replace(
            info,
            loading=self.loading,
            unserved=self.unserved,
            memory_bytes=self.memory_bytes,
            memory_bound_bytes=self.bound,
        )

    def run_once(self) -> None:
        """Look at folders and queues, and begin what is to be done.

        Raises:
            RedisError: the job store did not answer, or refused.
        """
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look()
        if now >= self._kept_at:
            self._kept_at = now + KEPT_EVERY_S
            self._forget_kept(now)
        if self._placing is None:
            self._follow(self._choose(now), now)

    def put_away(self, key: str) -> None:
        """Free a model's memory. The loop's thread calls this, when the model holds no chains."""
        model = self._served[key]
        name = model.card.name
        with self._lock:
            self._infos[name] = replace(model.info, state="put away")
            self._times.pop(key, None)
            self._leaves_since.pop(key, None)
        self._served.remove(key)
        self._counters.put_away[name] = self._counters.put_away.get(name, 0) + 1
        log.info(
            "the model %r is put away, and is loaded again when jobs of it wait",
            name,
            extra=event("model.put_away", model=name),
        )

    def _look(self) -> None:
        self._offers.refresh()
        names = self._offers.names
        for name in names - self._names:
            log.info(
                "the model %r was added, and is loaded while others step",
                name,
                extra=event("model.added", model=name),
            )
            self._serve(name)
        self._names |= names
        resident = {model.card.name for model in self._served.values()}
        self._served.gone = frozenset(self._names - names - resident)
        with self._lock:
            for version, fault in list(self._faults.items()):
                offer = self._offers.get(version)
                if offer is None or offer.stamp() != fault.stamp:
                    del self._faults[version]
                    self._known.discard(version)

    def _choose(self, now: float) -> Choice[Version]:
        absent = [o for o in self._offers if self._served.key_of(o.version) is None]
        for version in self._served.asked():
            self._asked_at[version] = now
        if not absent:
            # Nobody waits for memory: what left may take work again.
            return Choice(leave=frozenset(self._unoffered(now)))
        names = {offer.card.name for offer in absent}
        waiting = self._waiting(names | {model.card.name for model in self._served.values()})
        residents = self._residents(now, waiting)
        wanted = self._wanted(absent, waiting, now)
        chosen = choose(self.bound, now, wanted, residents)
        if chosen.load is None and not chosen.leave:
            return replace(chosen, load=self._newcomer(absent, residents))
        return chosen

    def _newcomer(
        self, absent: Iterable[Offer], residents: Mapping[Version, Resident]
    ) -> Version | None:
        """Name a model that was added, and fits beside the others: it is loaded before its jobs."""
        free = self.bound - sum(resident.needs for resident in residents.values())
        for offer in absent:
            is_new = offer.version not in self._known and not offer.is_kept
            if is_new and self._is_possible(offer) and self._needs(offer) <= free:
                return offer.version
        return None

    def _unoffered(self, now: float) -> list[Version]:
        """Name models in memory that nobody can ask for any more."""
        found = []
        for key, model in self._served.items():
            version = Version(model.card.name, model.card.sha256)
            times = self._times.setdefault(key, _Times(now, now, 0.0))
            if self._holds(key, model):
                times.used_at = now
            elif version not in self._offers and now - times.used_at >= KEPT_FOR_S:
                found.append(version)
        return found

    def _residents(self, now: float, waiting: set[str]) -> dict[Version, Resident]:
        taking = self._served.taking()
        found = {}
        for key, model in self._served.items():
            times = self._times.setdefault(key, _Times(now, now, 0.0))
            name = model.card.name
            takes = key not in self._served.leaving and taking.get(name) is model
            has_work = self._holds(key, model) or (name in waiting and takes)
            if has_work:
                times.used_at = now
            found[Version(name, model.card.sha256)] = Resident(
                _bytes_of(model), has_work, times.loaded_at, times.used_at, slice_s(times.load_s)
            )
        return found

    def _holds(self, key: str, model: LoadedModel) -> bool:
        """Tell whether the worker holds images of a model."""
        if len(model.engine):
            return True
        # Those on their way to the engine are counted by name: another version's may be among them.
        name = model.card.name
        others = any(m.card.name == name for k, m in self._served.items() if k != key)
        return not others and any(self._work.images(name, priority) for priority in Priority)

    def _wanted(
        self, absent: Iterable[Offer], waiting: set[str], now: float
    ) -> dict[Version, Wanted]:
        taking = {model.card.name for model in self._served.values()}
        self._asked_at = {v: at for v, at in self._asked_at.items() if now - at < _ASKED_FOR_S}
        found = {}
        for offer in absent:
            name = offer.card.name
            # If one version of a name is there, its intake meets jobs of the others.
            is_current = not offer.is_kept or not self._offers.current(name)
            waits = name in waiting and name not in taking and is_current
            if (waits or offer.version in self._asked_at) and self._is_possible(offer):
                found[offer.version] = offer
        since = {version: self._waiting_since.get(version, now) for version in found}
        self._waiting_since = since
        return {v: Wanted(self._needs(offer), since[v]) for v, offer in found.items()}

    def _is_possible(self, offer: Offer) -> bool:
        """Tell whether a model may be loaded now; note it as faulty if it can never be."""
        fault = self._faults.get(offer.version)
        if fault is not None:
            return self._clock() >= fault.retry_at
        try:
            self._check(offer)
            check_size(offer, self._needs(offer), self.bound)
        except ValueError as error:
            self._note_fault(offer, error)
            return False
        return True

    def _needs(self, offer: Offer) -> int:
        return needed_bytes(offer.card, self._pool_images)

    def _waiting(self, names: Iterable[str]) -> set[str]:
        """Return the names of which shards wait in the job store."""
        names = list(names)
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(*(ROTATION_PREFIX + rotation_name(p, name) for p in Priority))
            counts = pipe.execute()
        return {name for name, count in zip(names, counts, strict=True) if count}

    def _follow(self, choice: Choice[Version], now: float) -> None:
        keys = {key for version in choice.leave if (key := self._served.key_of(version))}
        with self._lock:
            self._leaves_since = {key: self._leaves_since.get(key, now) for key in keys}
            since = dict(self._leaves_since)
        self._served.leaving = frozenset(keys)
        for key in keys:
            times = self._times.setdefault(key, _Times(now, now, 0.0))
            is_urgent = now - since[key] >= slice_s(times.load_s)
            self._messages.put(ModelLeaves(key, is_urgent))
        if choice.load is not None and (offer := self._offers.get(choice.load)):
            self._read(offer)

    def _read(self, offer: Offer) -> None:
        """Read a model's weights, and hand them to the loop."""
        name, began = offer.card.name, self._clock()
        self._placing = offer.version
        self._known.add(offer.version)
        log.info("the model %r is read", name, extra=event("model.loading", model=name))
        # A model that was put away refers to itself.
        gc.collect()
        give_back_memory()
        try:
            checkpoint = load(offer.folder, offer.card.sha256)
        # Whatever it is, the jobs of other models go on.
        except Exception as error:
            self._note_fault(offer, error)
            self._placing = None
            return

        def place(between: Callable[[], None]) -> None:
            try:
                # as at the start, where no step is under way
                with torch.inference_mode(False):
                    model = self._place(offer, checkpoint, between)
            except Exception as error:
                self._note_fault(offer, error)
            else:
                self._add(offer, model, self._clock() - began)
            finally:
                self._placing = None

        self._messages.put(ModelRead(name, place))

    def _add(self, offer: Offer, model: LoadedModel, load_s: float) -> None:
        name, now = offer.card.name, self._clock()
        key = older_key(name, offer.card.sha256) if offer.is_kept else name
        before = self._served.get(key)
        with self._lock:
            if before is not None and (times := self._times.pop(key, None)):
                self._times[older_key(name, before.card.sha256)] = times
            self._times[key] = _Times(now, now, load_s)
            self._faults.pop(offer.version, None)
            self._infos.pop(name, None)
        if offer.is_kept:
            self._served.add_older(model)
        else:
            self._served.add(name, model)
        self._counters.loaded(name, load_s)
        self._serve(name)

    def _note_fault(self, offer: Offer, error: Exception) -> None:
        """Note why a model cannot be loaded, for `/readyz` and the log, and when to try again."""
        name, now = offer.card.name, self._clock()
        text = str(error) if isinstance(error, BadCheckpoint | ValueError) else ""
        if is_out_of_memory(error):
            text = (
                f"the model {name!r} does not fit the memory of the device "
                f"({client_reason(error)}); lower DDPM_MODELS_MEMORY, or leave it out of "
                "DDPM_MODELS"
            )
        text = text or f"the model {name!r} cannot be loaded: {client_reason(error)}"
        with self._lock:
            last = self._faults.get(offer.version)
            pause_s = min(LONGEST_RETRY_S, 2 * last.pause_s) if last else RETRY_S
            self._faults[offer.version] = _Fault(text, offer.stamp(), now + pause_s, pause_s)
        log.error(
            "%s; until then this worker serves its other models, and its jobs wait",
            text,
            extra=event("model.not_served", model=name),
        )

    def _forget_kept(self, now: float) -> None:
        """Delete kept weights that no open job needs."""
        kept = self._offers.kept()
        self._kept_since = {o.version: self._kept_since.get(o.version, now) for o in kept}
        old = [o for o in kept if now - self._kept_since[o.version] >= KEPT_FOR_S]
        if not old:
            return
        needed = self._needed_versions({offer.card.name for offer in old})
        for offer in old:
            if offer.version in needed:
                continue
            try:
                forget(offer.folder)
            except OSError as error:
                log.info(
                    "%s is needed no more, and cannot be deleted (%s)",
                    offer.folder,
                    error.strerror,
                    extra=event("model.kept", model=offer.card.name),
                )
                # Whoever owns the folder has to do it.
                self._kept_since[offer.version] = now
            else:
                log.info(
                    "weights %.12s of %r are deleted, as no open job needs them",
                    offer.card.sha256,
                    offer.card.name,
                    extra=event("model.forgotten", model=offer.card.name),
                )

    def _needed_versions(self, names: set[str]) -> set[Version]:
        """Return the versions that open jobs of these names were accepted with."""
        left = cast("dict[bytes, bytes]", self._redis.hgetall(LEFT))
        # "<image-steps left> <count> <steps> <model> <owner>"
        jobs = [job for job, entry in left.items() if entry.decode().split(" ", 4)[3] in names]
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hmget(job_key(job.decode()), "model", "weights")
            found = pipe.execute()
        return {Version(name.decode(), weights.decode()) for name, weights in found if weights}


def check_size(offer: Offer, needs: int, bound: int) -> None:
    """Refuse a model that is larger than all models together may be.

    Raises:
        ValueError: it is.
    """
    if needs > bound:
        raise ValueError(
            f"the model {offer.card.name!r} takes {needs / 1e6:,.0f} MB, and all models together "
            f"may take {bound / 1e6:,.0f} MB; raise DDPM_MODELS_MEMORY, or leave it out of "
            "DDPM_MODELS"
        )


def _bytes_of(model: LoadedModel) -> int:
    return needed_bytes(model.card, model.capacity)
