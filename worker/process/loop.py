"""The worker: one thread steps the engines, the others carry shards in and pictures out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from queue import Empty
from typing import cast

import torch
from redis import Redis
from redis.exceptions import RedisError
from torch import Tensor

from worker.calibration.slowdown import Slowdown
from worker.engine.chain import Finished
from worker.engine.model_scheduler import ModelScheduler
from worker.jobs.domain import Priority
from worker.jobs.keys import queue_name
from worker.jobs.worker_registry import WorkerInfo
from worker.process.active_shard import ActiveShard
from worker.process.background_threads import BackgroundThreads
from worker.process.heartbeat import Heartbeat
from worker.process.intake import ChangeListener, Intake
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import CannotRun, LoadedModel
from worker.process.messages import JobEnded, LeaseLost, MessageQueue, ShardTaken
from worker.process.previews import PreviewSender
from worker.process.result_sender import PROGRESS_EVERY_S, ResultBatch, ResultSender
from worker.process.results_cleanup import ResultsCleanup
from worker.process.shard_leases import Lease, ShardLeases
from worker.process.snapshot_saver import SnapshotSaver
from worker.redaction import client_reason
from worker.results.store import ResultsStore

log = logging.getLogger(__name__)
_IDLE_S = 0.5
_TELL_ALL_EVERY_S = 1.0
_STOP_WITHIN_S = 3.0


class WorkerLoop:
    """`run` returns when its crew is to stop, with its shards given back; it raises what made a step or a thread fail."""

    def __init__(
        self, redis: Redis, models: Mapping[str, LoadedModel], device: str, store: ResultsStore
    ) -> None:
        queues = [queue_name(priority, name) for priority in Priority for name in models]
        self.crew = BackgroundThreads()
        self._models, self._device, self._store = models, device, store
        self._held: dict[str, ActiveShard] = {}
        self._inbox, self._load = MessageQueue(), WorkerLoad()
        self._shards, self._results = ShardLeases(redis, queues), JobWriter(redis, store)
        self._previews = PreviewSender(redis)
        self._listener = ChangeListener(redis, self._load, self._inbox, self._previews)
        self._outbox = ResultSender(self._shards, self._results, self._inbox)
        self._saver = SnapshotSaver(self._shards, self._results, self._inbox)
        self._intake = Intake(
            self._shards, self._results, models, self._load, self._inbox, self._outbox.is_full
        )
        self._upkeep = Heartbeat(
            redis, self._shards, self._inbox, self._info, lambda: self._turned, self.crew.stopping
        )
        self._expiry = ResultsCleanup(redis, store, self.crew.stopping)
        self._speed = Slowdown()
        self._turns = ModelScheduler[LoadedModel]()
        self._at_risk: Sequence[Lease] = ()
        self._turned = 0
        self._reported = self._told_all = 0.0
        self._moved: set[str] = set()  # shards of which an image has left since the last report

    @torch.inference_mode()  # once, and not for every step
    def run(self) -> None:
        self.crew.with_retry("start", self._shards.beat)
        for name in (
            "upkeep",
            "listener",
            "outbox",
            "saver",
            "previews",
            "intake",
            *(["expiry"] if self._store.external else []),
        ):
            self.crew.start(name, getattr(self, f"_{name}").run_once)
        self.crew.start("rescue", self._upkeep.rescue)
        log.info("worker %s is ready", self._shards.name)
        try:
            while not self.crew.must_stop():
                self._turn()
            if self.crew.failure:
                raise self.crew.failure
        except Exception as error:
            self._break_off(error)
            raise
        self._close()

    def _turn(self) -> None:
        self._turned += 1
        self._read_inbox()
        began, busy = (
            time.monotonic(),
            [model for model in self._models.values() if len(model.engine)],
        )
        promised_s = 0.0
        for model, within_s in self._turns.next_steps(busy):
            step_s = self._step(model, within_s)
            self._turns.note(
                model, step_s or model.lone_s
            )  # else one that a suspect keeps from stepping would always be next
            promised_s += step_s
        self._report()
        self._save()
        self._previews.take(self._held.values())
        if (
            busy
        ):  # with nothing promised too: a GPU's steps take their time when somebody waits for them
            self._speed.note(time.monotonic() - began, promised_s)

    def _step(self, model: LoadedModel, within_s: float) -> float:
        """The seconds that calibration promises for it.

        While a suspect is here, nothing else steps: should it end the worker again, it is nobody else's loss.
        """
        suspect = self._suspect()
        if suspect and suspect.model is not model:
            return 0.0
        done_before = model.engine.image_steps
        stepping = (
            [suspect] if suspect else [held for held in self._held.values() if held.model is model]
        )
        try:
            finished = model.step(suspect.chains() if suspect else None, within_s)
        except Exception:
            self._at_risk = [held.lease for held in stepping]
            raise
        self._retire(model, finished)
        chains = model.engine.image_steps - done_before
        return model.promised_s(chains) if chains else 0.0

    def _suspect(self) -> ActiveShard | None:
        """The shard with which workers were lost, until it has passed the point where that happened."""
        lease = self._load.suspect
        held = self._held.get(lease.shard.id) if lease else None
        if (
            lease is None or held is None or held.lease is not lease
        ):  # none, or it is still in the inbox
            return None
        if held.is_suspect():
            return held
        self._load.clear(lease)
        return None

    def _read_inbox(self) -> None:
        """Everything that has come; with nothing to step, wait for something."""
        try:
            entry = self._inbox.get(timeout=None if self._held else _IDLE_S, block=not self._held)
            while True:
                self._heed(entry)
                entry = self._inbox.get_nowait()
        except Empty:
            return

    def _heed(self, entry: ShardTaken | JobEnded | LeaseLost) -> None:
        match entry:
            case ShardTaken():
                self._admit(entry)
                if entry.lease.shard.id not in self._held:
                    self._load.clear(entry.lease)
            case JobEnded(job):
                self._drop([held for held in self._held.values() if held.lease.shard.job == job])
            case LeaseLost(lease):
                self._drop([held for held in self._held.values() if held.lease is lease])

    def _admit(self, taken: ShardTaken) -> None:
        shard = taken.lease.shard
        if not self._shards.holds(taken.lease):
            self._load.clear(taken.lease)
            self._load.add(shard, -len(taken.indices))
            return
        if shard.id in self._held:  # we were stopped past the lease, and the shard came back to us
            self._drop([self._held[shard.id]])
        model = self._models[shard.recipe.model]
        try:
            model.admit(shard, taken.indices, taken.saved)
        except CannotRun as error:
            self._outbox.post(ResultBatch(taken.lease, failure=(error.code, str(error)), last=True))
            self._load.add(shard, -len(taken.indices))
            return
        except Exception:
            self._at_risk = [taken.lease]
            raise
        if taken.indices:
            self._held[shard.id] = ActiveShard(taken.lease, model, set(taken.indices))
        else:  # its worker died between the last image and the end of the shard
            self._outbox.post(ResultBatch(taken.lease, last=True))

    def _drop(self, shards: list[ActiveShard]) -> None:
        for held in shards:
            held.model.engine.cancel(held.chains())
            self._let_go(held, len(held.left))
            self._outbox.post(ResultBatch(held.lease, last=True))

    def _retire(self, model: LoadedModel, finished: list[Finished]) -> None:
        by_shard: dict[str, list[tuple[int, Tensor]]] = {}
        for image in finished:
            shard_id, index = cast("tuple[str, int]", image.request.chain)
            if image.pixels is None:
                self._fail(shard_id, index)
            else:
                by_shard.setdefault(shard_id, []).append((index, image.pixels))
        for shard_id, images in by_shard.items():
            held = self._held.get(shard_id)
            if held is None:  # a neighbour in the batch has just failed the job
                continue
            held.left -= {index for index, _ in images}
            self._moved.add(shard_id)
            last = not held.left
            self._let_go(held, len(images), for_good=last)
            self._outbox.post(ResultBatch(held.lease, images, model.precision, last=last))

    def _fail(self, shard_id: str, index: int) -> None:
        held = self._held.get(shard_id)
        if held is None:
            return
        held.left.discard(index)
        held.model.engine.cancel(held.chains())
        self._let_go(held, len(held.left) + 1)
        message = f"the network's output for image {index} is not finite; the weights or the precision are at fault"
        self._outbox.post(ResultBatch(held.lease, failure=("not_finite", message), last=True))

    def _let_go(self, held: ActiveShard, images: int, for_good: bool = True) -> None:
        if for_good:
            del self._held[held.lease.shard.id]
            self._load.clear(held.lease)
        self._load.add(held.lease.shard, -images)

    def _report(self) -> None:
        """Of the shards that have come on; now and then of all, as the answers say whose jobs have ended."""
        now = time.monotonic()
        if not self._held or now - self._reported < PROGRESS_EVERY_S:
            return
        self._reported = now
        told, self._moved = (
            self._moved.union(*(model.moved() for model in self._models.values())),
            set(),
        )
        if now - self._told_all >= _TELL_ALL_EVERY_S:
            self._told_all, told = now, set(self._held)
        shards = [held for shard in told if (held := self._held.get(shard))]
        self._outbox.report((held.lease, *held.progress()) for held in shards)

    def _report_all(self) -> None:
        self._reported = self._told_all = 0.0
        self._report()

    def _save(self) -> None:
        if due := self._saver.due(self._held.values()):
            self._settle()
            self._saver.save([held for held in due if self._held.get(held.lease.shard.id) is held])

    def _settle(self) -> None:
        """Every image that is finished has left its engine, and what is held can be copied."""
        for model in self._models.values():
            self._retire(model, model.engine.settle())

    def _save_all(self) -> None:
        self._settle()
        self._saver.finish(self._held.values(), _STOP_WITHIN_S)

    def _info(self) -> WorkerInfo:
        models = {name: model.info for name, model in self._models.items()}
        return WorkerInfo(self._shards.name, self._device, models, self._speed.slowed)

    def _close(self) -> None:
        """Store what is finished, save the rest and give it back; without Redis the leases lapse, and others take over."""
        self.crew.stop(_STOP_WITHIN_S)
        self._report_all()
        for send in (self._save_all, self._outbox.flush):
            try:
                send()
            except Exception as error:  # whatever keeps chains from being saved: pictures are sent, and shards given back
                log.warning(
                    "worker %s could not send everything: %s",
                    self._shards.name,
                    client_reason(error),
                )
                if isinstance(error, RedisError):
                    break  # there is no time to wait for it twice
        try:
            self._upkeep.sign_off()
            self._shards.close()
        except RedisError as error:
            log.warning(
                "worker %s could not give back %d shards: %s",
                self._shards.name,
                len(self._held),
                error,
            )
        else:
            done = sum(model.engine.image_steps for model in self._models.values())
            log.info(
                "worker %s gave back %d shards after %d image-steps in all",
                self._shards.name,
                len(self._held),
                done,
            )

    def _break_off(self, error: Exception) -> None:
        """The shards at risk, or all where nobody knows, count this worker as lost and say why; the others are given back."""
        self.crew.stop(_STOP_WITHIN_S)
        said = client_reason(error)
        farewells = (
            self._report_all,
            self._save_all,
            self._outbox.flush,
            lambda: self._shards.abandon(self._at_risk, said),
            self._upkeep.sign_off,
            self._shards.close,
        )
        for farewell in farewells:
            try:
                farewell()
            except Exception as another:  # whatever fails with it: the process ends all the same
                log.warning("worker %s breaks off: %s", self._shards.name, another)
