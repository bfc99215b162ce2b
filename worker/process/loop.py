"""The worker's loop: one thread steps the engines, the others carry shards in and images out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty
from typing import cast

import torch
from redis.exceptions import RedisError
from torch import Tensor

from worker.calibration.calibrate import compute_by
from worker.calibration.slowdown import Slowdown
from worker.engine.chain import Finished
from worker.engine.model_scheduler import ModelScheduler
from worker.jobs.server_check import check_server
from worker.jobs.worker_registry import WorkerCounters
from worker.logs import bound, event, together
from worker.process.active_shard import ActiveShard
from worker.process.background_threads import BackgroundTask, BackgroundThreads
from worker.process.heartbeat import Heartbeat
from worker.process.intake import Intake
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import CannotRun, LoadedModel
from worker.process.messages import (
    JobEnded,
    LeaseLost,
    Message,
    MessageQueue,
    ModelLeaves,
    ModelRead,
    ShardTaken,
    WorkerIdle,
)
from worker.process.models.served_models import ServedModels
from worker.process.previews import PreviewSender
from worker.process.result_sender import PROGRESS_EVERY_S, ResultBatch, ResultSender
from worker.process.shard_leases import Lease, ShardLeases
from worker.process.snapshot_saver import SnapshotSaver
from worker.process.watchdog import Watchdog
from worker.redaction import client_reason

log = logging.getLogger(__name__)
REPORT_ALL_EVERY_S = 1.0
# How long a worker takes no more than a batch after another one had nothing.
LEAN_S = 2.0
# Each report is a write that goes to the disk, so those of many shards are further apart.
REPORTS_PER_S = 1000
_IDLE_S = 0.5
_STOP_WITHIN_S = 3.0
_FLUSH_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """The objects of a worker, as `worker.__main__.build` connects them.

    Attributes:
        tasks: what runs in threads of its own while the loop steps.
        put_away: frees the memory of a model that holds no chains, by its key.
    """

    shards: ShardLeases
    writer: JobWriter
    messages: MessageQueue
    load: WorkerLoad
    intake: Intake
    sender: ResultSender
    saver: SnapshotSaver
    previews: PreviewSender
    heartbeat: Heartbeat
    watchdog: Watchdog
    slowdown: Slowdown
    counters: WorkerCounters
    threads: BackgroundThreads
    tasks: Sequence[BackgroundTask]
    put_away: Callable[[str], object] = lambda key: None


class _StepFailed(BaseException):
    """A step failed while a model was loaded. The model is not to blame, and nobody may catch it.

    Attributes:
        error: what the step raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class WorkerLoop:
    """Steps the models while the other threads take shards and send results.

    Only one thread may call its methods, apart from `request_stop`.

    Attributes:
        models: the models that the worker has in memory.
        parts: the other objects of the worker.
    """

    def __init__(
        self,
        models: ServedModels,
        parts: WorkerParts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a loop that holds no shard yet.

        Args:
            models: the models that the worker has in memory.
            parts: the other objects of the worker.
            clock: the time in seconds, from any beginning.
        """
        self.models = models
        self.parts = parts
        self._clock = clock
        # By the shard's id.
        self._active: dict[str, ActiveShard] = {}
        self._model_scheduler = ModelScheduler[LoadedModel]()
        # Shards that were admitted and are not in the log yet.
        self._started: list[ShardTaken] = []
        # The shards that count the loss if the step at hand throws.
        self._at_risk: Sequence[Lease] = ()
        self._reported_at = -math.inf
        self._reported_all_at = -math.inf
        # Ids of the shards of which an image has left since the last report.
        self._moved: set[str] = set()

    @property
    def active(self) -> Collection[ActiveShard]:
        """The shards that are in an engine."""
        return self._active.values()

    def request_stop(self) -> None:
        """Ask `run` to return. Signal handlers and other threads may call this."""
        self.parts.threads.request_stop()

    # Entered once, and not for every step.
    @torch.inference_mode()
    def run(self) -> None:
        """Serve until a stop is requested, and give the shards back.

        Raises:
            ClusterMode: the job store is a node of a cluster.
            Exception: what made a step or a thread fail. The shards have been given back then, but
                those that may be at fault count a loss.
        """
        threads, name = self.parts.threads, self.parts.shards.name
        threads.with_retry("start", lambda: check_server(self.parts.shards.connection))
        # The first take needs to know who else lives.
        threads.with_retry("start", self.parts.heartbeat.run_once)
        for task in self.parts.tasks:
            threads.start(task)
        log.info("worker %s is ready", name, extra=event("worker.ready"))
        try:
            while not threads.must_stop():
                self.run_once()
            if threads.failure:
                raise threads.failure
        except Exception as error:
            self._break_off(error)
            raise
        else:
            self.drain()
        finally:
            threads.close()

    def run_once(self) -> None:
        """Make one turn: handle messages, step, report progress, and copy what is to be sent.

        With nothing to step, wait a moment for a message.
        """
        self._run_once(block=not self._active)

    def _run_once(self, block: bool) -> None:
        self.parts.watchdog.note_turn()
        self._handle_waiting(block)
        began = self._clock()
        busy = [model for model in self.models.values() if len(model.engine)]
        promised_s = self._step_some(busy)
        self.report()
        self._save_due()
        self.parts.previews.copy(self._active.values())
        # Noted even if nothing was promised: a step on a GPU takes its time when its images arrive.
        if busy:
            self.parts.slowdown.note(self._clock() - began, promised_s)

    def handle(self, message: Message) -> None:
        """Admit a shard, or part with shards that are not to be finished here."""
        match message:
            case ShardTaken(lease):
                self._admit(message)
                if lease.shard.id not in self._active:
                    self.parts.load.clear_suspect(lease)
            case JobEnded(job):
                self._drop([active for active in self.active if active.lease.shard.job == job])
            case LeaseLost(lease):
                self._drop([active for active in self.active if active.lease is lease])
            case WorkerIdle(rotations):
                self._hand_back(rotations)
            case ModelRead(_, place):
                self.parts.watchdog.note_load()
                try:
                    place(self._step_beside)
                except _StepFailed as failed:
                    raise failed.error from None
                finally:
                    self.parts.watchdog.note_turn()
            case ModelLeaves(key, is_urgent):
                self._leave(key, is_urgent)

    def report(self) -> None:
        """Report the progress of the shards that have stepped, PROGRESS_EVERY_S apart or more.

        Every REPORT_ALL_EVERY_S report all shards, because the answers say whose jobs have ended.
        """
        now = self._clock()
        every_s = max(PROGRESS_EVERY_S, len(self._active) / REPORTS_PER_S)
        if not self._active or now - self._reported_at < every_s:
            return
        self._reported_at = now
        moved = self._moved.union(*(model.moved() for model in self.models.values()))
        self._moved = set()
        if now - self._reported_all_at >= REPORT_ALL_EVERY_S:
            self._reported_all_at = now
            moved = set(self._active)
        self._send_progress(active for shard in moved if (active := self._active.get(shard)))

    def save_all(self) -> None:
        """Save the chains of all shards, as far as there is time before the worker exits.

        Raises:
            RedisError: Redis did not answer, or refused.
            StoreFault: the results store did not take large chains.
        """
        self._settle()
        self.parts.saver.finish(self._active.values(), _STOP_WITHIN_S)

    def drain(self) -> None:
        """Close in good order: send what is finished, save the rest, and give the shards back.

        Without Redis the leases lapse, and other workers take the shards over.
        """
        name = self.parts.shards.name
        self.parts.watchdog.note_stop()
        self.parts.threads.stop(_STOP_WITHIN_S)
        self._report_all()
        for send in (self.save_all, self._flush):
            try:
                send()
            # Whatever keeps chains from being saved, images are sent and shards are given back.
            except Exception as error:
                log.warning(
                    "worker %s could not send everything: %s",
                    name,
                    client_reason(error),
                    extra=event("worker.unsent"),
                )
                # There is no time to wait for Redis twice.
                if isinstance(error, RedisError):
                    break
        shards = len(self._active)
        try:
            self.parts.heartbeat.sign_off()
            self.parts.shards.close()
        except RedisError as error:
            log.warning(
                "worker %s could not give back %d shards: %s",
                name,
                shards,
                error,
                extra=event("worker.unreturned"),
            )
        else:
            done = sum(model.engine.image_steps for model in self.models.values())
            log.info(
                "worker %s gave back %d shards after %d image-steps in all",
                name,
                shards,
                done,
                extra=event("worker.stopped"),
            )

    def _break_off(self, error: Exception) -> None:
        """Close after a failure. The shards at risk count a loss; the others are given back.

        If nobody knows which shards are at risk, all count it.
        """
        self.parts.watchdog.note_stop()
        self.parts.threads.stop(_STOP_WITHIN_S)
        reason = client_reason(error)
        farewells = (
            self._report_all,
            self.save_all,
            self._flush,
            lambda: self.parts.shards.abandon(self._at_risk, reason),
            self.parts.heartbeat.sign_off,
            self.parts.shards.close,
        )
        for farewell in farewells:
            try:
                farewell()
            # Whatever else fails, the process ends.
            except Exception as another:
                log.warning(
                    "worker %s breaks off: %s",
                    self.parts.shards.name,
                    another,
                    extra=event("worker.broken_off"),
                )

    def _flush(self) -> None:
        """Send what is finished. A store that hangs does not keep the shards from going back."""
        if not self.parts.threads.run_within(self.parts.sender.flush, _FLUSH_WITHIN_S):
            log.warning(
                "worker %s could not send all that is finished within %.0f s; another worker draws "
                "it again",
                self.parts.shards.name,
                _FLUSH_WITHIN_S,
                extra=event("worker.unsent"),
            )

    def _step_beside(self) -> None:
        """Make a turn while a model is loaded, between two steps that are measured of it.

        Raises:
            _StepFailed: the turn failed.
        """
        threads = torch.get_num_threads()
        try:
            self._run_once(block=False)
        except Exception as error:
            raise _StepFailed(error) from error
        compute_by(threads)
        self.parts.watchdog.note_load()

    def _handle_waiting(self, block: bool) -> None:
        messages = self.parts.messages
        try:
            message = messages.get(block=block, timeout=_IDLE_S)
            while True:
                self.handle(message)
                message = messages.get_nowait()
        except Empty:
            return
        finally:
            self._log_starts()

    def _admit(self, taken: ShardTaken) -> None:
        lease, shard = taken.lease, taken.lease.shard
        load, sender = self.parts.load, self.parts.sender
        if not self.parts.shards.holds(lease):
            load.clear_suspect(lease)
            load.add(shard, -len(taken.indices))
            return
        # We were stopped for longer than a lease, and the shard came back to us.
        if shard.id in self._active:
            self._drop([self._active[shard.id]])
        model = self.models.find(shard.recipe)
        # It was put away when the shard was on its way.
        if model is None:
            load.add(shard, -len(taken.indices))
            self._send_back([lease])
            return
        try:
            with bound(**lease.log_fields):
                model.admit(shard, taken.indices, taken.saved)
        except CannotRun as error:
            sender.post(ResultBatch(lease, failure=(error.code, str(error)), last=True))
            load.add(shard, -len(taken.indices))
            return
        except Exception:
            self._at_risk = [lease]
            raise
        if taken.indices:
            active = ActiveShard(lease, model, set(taken.indices), self._clock())
            active.admitted_steps = active.progress()[1]
            self._active[shard.id] = active
            self._started.append(taken)
            self.parts.counters.rescues += taken.saved is not None
        # Its worker was lost between the last image and the end of the shard.
        else:
            sender.post(ResultBatch(lease, last=True))

    def _log_starts(self) -> None:
        with together():
            for taken in self._started:
                lease, shard = taken.lease, taken.lease.shard
                log.info(
                    "shard %s starts: %d images of %d steps, attempt %d",
                    shard.id,
                    len(taken.indices),
                    shard.recipe.steps,
                    lease.attempt,
                    extra=event(
                        "shard.started",
                        **lease.log_fields,
                        images=len(taken.indices),
                        attempt=lease.attempt,
                        continues=taken.saved is not None,
                    ),
                )
        self._started.clear()

    def _drop(self, shards: Iterable[ActiveShard]) -> None:
        """End shards that are not to be finished here."""
        for active in shards:
            active.model.engine.cancel(active.chains())
            self._release(active, len(active.left))
            self.parts.sender.post(ResultBatch(active.lease, last=True))

    def _hand_back(self, rotations: Collection[str]) -> None:
        """Part with shards that have not stepped, the last taken first, but keep batches full."""
        load = self.parts.load
        load.lean_until = self._clock() + LEAN_S
        for model in self.models.values():
            spare = len(model.engine) - model.engine.batch_sizes.largest
            parked = [
                active
                for active in self.active
                if active.model is model
                and active.lease.shard.rotation in rotations
                and active.is_parked()
            ]
            back: list[Lease] = []
            for active in reversed(parked):
                if len(active.left) <= spare:
                    spare -= len(active.left)
                    model.engine.cancel(active.chains())
                    back.insert(0, active.lease)
                    self._release(active, len(active.left))
            self._send_back(back)

    def _send_back(self, leases: list[Lease]) -> None:
        if leases:
            self.parts.load.parked.put(leases)
            self.parts.load.changed.set()

    def _leave(self, key: str, is_urgent: bool) -> None:
        """Free a model's memory. Shards that have not stepped go back, and the others end first.

        If it is urgent, those go back too of which steps are saved.
        """
        model = self.models.get(key)
        if model is None:
            return
        held = [active for active in self.active if active.model is model]
        back = [
            active
            for active in held
            if active.is_parked() or (is_urgent and active.saved_steps > active.admitted_steps)
        ]
        for active in back:
            model.engine.cancel(active.chains())
            self._release(active, len(active.left))
        self._send_back([active.lease for active in back])
        if not len(model.engine) and len(back) == len(held):
            self._model_scheduler.forget(model)
            self.parts.put_away(key)

    def _step_some(self, busy: Sequence[LoadedModel]) -> float:
        """Step the models whose turn it is; return the seconds that calibration promised."""
        promised_s = 0.0
        for model, within_s in self._model_scheduler.next_steps(busy):
            step_s = self._step(model, within_s)
            # A model that a suspect keeps from stepping is charged too, or it would always be next.
            self._model_scheduler.note(model, step_s or model.lone_s)
            promised_s += step_s
        return promised_s

    def _step(self, model: LoadedModel, within_s: float) -> float:
        """Step one model; return the seconds that calibration promised.

        While there are suspects nothing else steps. If one ends the worker again, no other shard is
        lost.
        """
        suspects = self._suspects()
        stepping = [active for active in suspects or self.active if active.model is model]
        if not stepping:
            return 0.0
        chains = [chain for active in stepping for chain in active.chains()] if suspects else None
        done_before, began = model.engine.image_steps, self._clock()
        try:
            finished = model.step(chains, within_s)
        except Exception:
            self._at_risk = [active.lease for active in stepping]
            raise
        self._retire(model, finished)
        stepped = model.engine.image_steps - done_before
        name = stepping[0].lease.shard.recipe.model
        self.parts.counters.stepped(name, stepped, self._clock() - began)
        return sum(map(model.promised_s, model.engine.passes)) if stepped else 0.0

    def _suspects(self) -> list[ActiveShard]:
        """Return the suspects that have not passed the point where workers were lost."""
        suspects = []
        for lease in self.parts.load.suspects:
            active = self._active.get(lease.shard.id)
            # It has not been admitted yet.
            if active is None or active.lease is not lease:
                continue
            if active.is_suspect():
                suspects.append(active)
            else:
                self.parts.load.clear_suspect(lease)
        return suspects

    def _retire(self, model: LoadedModel, finished: Iterable[Finished]) -> None:
        """Send the images that have left the engine; fail the jobs of those that are not finite."""
        by_shard: dict[str, list[tuple[int, Tensor]]] = {}
        for image in finished:
            shard_id, index = cast("tuple[str, int]", image.request.chain)
            if image.pixels is None:
                self._fail(shard_id, index)
            else:
                by_shard.setdefault(shard_id, []).append((index, image.pixels))
        batches = []
        for shard_id, images in by_shard.items():
            active = self._active.get(shard_id)
            # Another image of the batch may just have failed the job.
            if active is None:
                continue
            active.left -= {index for index, _ in images}
            self._moved.add(shard_id)
            last = not active.left
            self._release(active, len(images), for_good=last)
            batches.append(
                ResultBatch(active.lease, images, model.precision, model.fingerprint, last=last)
            )
        if batches:
            self.parts.sender.post_all(batches)

    def _fail(self, shard_id: str, index: int) -> None:
        active = self._active.get(shard_id)
        if active is None:
            return
        active.left.discard(index)
        active.model.engine.cancel(active.chains())
        self._release(active, len(active.left) + 1)
        message = (
            f"the network's output for image {index} is not finite; "
            "the weights or the precision are at fault"
        )
        batch = ResultBatch(active.lease, failure=("not_finite", message), last=True)
        self.parts.sender.post(batch)

    def _release(self, active: ActiveShard, images: int, for_good: bool = True) -> None:
        """Count images of the shard that are gone; `for_good` if the shard itself is."""
        if for_good:
            del self._active[active.lease.shard.id]
            self.parts.load.clear_suspect(active.lease)
        self.parts.load.add(active.lease.shard, -images)

    def _report_all(self) -> None:
        for model in self.models.values():
            model.moved()
        self._moved = set()
        self._send_progress(self._active.values())

    def _send_progress(self, shards: Iterable[ActiveShard]) -> None:
        self.parts.sender.report((active.lease, *active.progress()) for active in shards)

    def _save_due(self) -> None:
        due = self.parts.saver.due(self._active.values())
        if due:
            self._settle()
            # Some may have left meanwhile.
            still_here = [a for a in due if self._active.get(a.lease.shard.id) is a]
            self.parts.saver.save(still_here)

    def _settle(self) -> None:
        """Wait until every finished image has left its engine, so that the rest can be copied."""
        for model in self.models.values():
            self._retire(model, model.engine.settle())
