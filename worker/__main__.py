"""`python -m worker`: load the models, and serve until SIGTERM or SIGINT.

`build` shows which objects a worker consists of, and how they know each other.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from redis import Redis

from models.checkpoints.added.scratch import remove_ownerless
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import SHIPPED, Card, Catalog, CatalogError
from models.checkpoints.diffusers_format import Checkpoint
from models.checkpoints.live_catalog import LiveCatalog
from models.networks.memory import is_out_of_memory
from worker.backends.host import HostShare, UnusableDevice, choose_device, memory_bytes
from worker.calibration.cache import CalibrationCache
from worker.calibration.slowdown import Slowdown
from worker.engine.snapshot_codec import packed_bytes
from worker.jobs.domain import SHARD_IMAGES, Priority
from worker.jobs.keys import rotation_name
from worker.jobs.reaper import REAP_EVERY_S, Reaper
from worker.jobs.server_check import ClusterMode
from worker.jobs.store import client
from worker.jobs.worker_registry import WorkerCounters, WorkerInfo, starting
from worker.logs import configure, event, url_secrets
from worker.process.background_threads import BackgroundTask, BackgroundThreads
from worker.process.heartbeat import HEARTBEAT_EVERY_S, Heartbeat
from worker.process.intake import ChangeListener, Intake
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop, WorkerParts
from worker.process.messages import MessageQueue
from worker.process.models.keeper import POLL_EVERY_S as MODELS_POLL_EVERY_S
from worker.process.models.keeper import ModelKeeper, check_size
from worker.process.models.offers import Offer, Offers, needed_bytes
from worker.process.models.served_models import ServedModels
from worker.process.previews import PreviewSender
from worker.process.result_sender import ResultSender
from worker.process.results_cleanup import POLL_EVERY_S, ResultsCleanup
from worker.process.shard_leases import ShardLeases
from worker.process.snapshot_saver import REDIS_SHARD_BYTES, SnapshotSaver
from worker.process.watchdog import CHECK_EVERY_S, Watchdog
from worker.redaction import client_reason
from worker.results.store import ResultsStore
from worker.results.url import open_store
from worker.results.watched_store import WatchedStore
from worker.settings import WorkerSettings
from worker.tracing import Tracing, start_tracing

log = logging.getLogger("worker")
_REDIS_TIMEOUT_S = 2.0
# The bound on the memory of models holds for their pools, too. So of more models than these no pool
# need be smaller.
_SHARING = 8
_NOT_SERVED = "%s; until then this worker serves its other models only"


def main() -> int:
    """Run a worker as the settings say; return the process's exit status."""
    # Nothing that is logged before is secret: neither are the names of settings.
    configure("auto", "info")
    try:
        settings = WorkerSettings()
        device = device_setting(settings.device)
        label = settings.worker_name or f"{socket.gethostname()}-{device}"
        secrets = url_secrets(settings.redis_url, settings.results_url.get_secret_value())
        configure(
            settings.log_format, settings.log_level, secrets=secrets, process="worker", worker=label
        )
        store = open_store(settings.results_url.get_secret_value())
        tracing = start_tracing("ddpm-worker")
        redis = connect(settings.redis_url)
        # before they are loaded: what is added meanwhile is then new
        offered = OfferedModels(settings, device)
        with starting(redis):
            models = load_models(settings, device, offered.faults)
    except (CatalogError, BadCheckpoint, ValueError) as error:
        log.error("%s", error, extra=event("worker.not_started"))
        return 1
    worker = build(
        redis,
        models,
        str(device),
        store,
        heartbeat_file=settings.heartbeat_file,
        label=label,
        offered=offered,
        tracing=tracing,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.request_stop())
    try:
        worker.run()
    except ClusterMode as refused:
        log.error("%s", refused, extra=event("redis.refused"))
        return 1
    finally:
        if tracing:
            tracing.close()
    return 0


def connect(url: str) -> Redis:
    """Return a client with short timeouts and no hidden retries.

    Whoever calls it knows best what an unanswered command means.
    """
    return client.connect(url, _REDIS_TIMEOUT_S)


def build(
    redis: Redis,
    loaded: Mapping[str, LoadedModel],
    device: str,
    store: ResultsStore,
    *,
    writer: JobWriter | None = None,
    heartbeat_file: Path | None = None,
    label: str = "",
    offered: OfferedModels | None = None,
    tracing: Tracing | None = None,
    clock: Callable[[], float] = time.monotonic,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> WorkerLoop:
    """Make a worker's objects, and connect them.

    `redis` is not asked anything here, so that a worker can be built while it is away.

    Args:
        redis: the job store.
        loaded: the models to serve, by name.
        device: the name of the device that they run on.
        store: where finished images lie.
        writer: takes the place of `JobWriter(redis, store)`.
        heartbeat_file: is touched at every heartbeat.
        label: the worker's name in metrics and logs.
        offered: what else it can load while it serves. None: nothing.
        tracing: makes spans of shards. None: nobody asks for them.
        clock: the time in seconds, from any beginning.
        cpu_clock: seconds of processor time of the calling thread.
    """
    models = ServedModels(loaded, offered.offers.__contains__ if offered else None)
    counters = WorkerCounters()
    threads = BackgroundThreads(counters)
    messages = MessageQueue()
    load = WorkerLoad()
    slowdown = Slowdown()
    watched = WatchedStore(store, clock)
    writer = writer or JobWriter(redis, watched)
    names = dict.fromkeys([*models, *(sorted(offered.offers.names) if offered else ())])
    shards = ShardLeases(redis, [rotation_name(p, name) for p in Priority for name in names])
    sender = ResultSender(
        shards, writer, messages, has_room=load.changed.set, clock=clock, tracing=tracing
    )
    saver = SnapshotSaver(
        shards, writer, messages, clock=clock, cpu_clock=cpu_clock, counters=counters
    )
    previews = PreviewSender(redis)
    listener = ChangeListener(redis, load, messages, previews, shards.name)
    reaper = Reaper(redis, shards.lease_s)
    cleanup = ResultsCleanup(redis, store, threads.stopping)

    def longest_step_s() -> float:
        return slowdown.slowed * sum(model.longest_s for model in models.values())

    watchdog = Watchdog(shards, step_s=longest_step_s)

    keeper = None
    if offered is not None:

        def serve(name: str) -> None:
            shards.serve([rotation_name(priority, name) for priority in Priority])
            load.changed.set()

        keeper = ModelKeeper(
            offered.offers,
            models,
            load,
            messages,
            redis,
            offered.place,
            bound=offered.bound,
            pool_images=offered.pool_images,
            check=offered.check,
            faults=offered.faults,
            counters=counters,
            serve=serve,
            clock=clock,
        )

    def describe() -> WorkerInfo:
        infos = keeper.infos if keeper else {name: model.info for name, model in models.items()}
        info = WorkerInfo(shards.name, device, infos, slowdown.slowed, watched.fault, label)
        return keeper.described(info) if keeper else info

    heartbeat = Heartbeat(redis, shards, messages, describe, heartbeat_file, counters)
    intake = Intake(
        shards,
        writer,
        models,
        load,
        messages,
        lambda: sender.is_full() or bool(watched.fault),
        heartbeat.others_fingerprints,
        lambda: slowdown.slowed,
        clock=clock,
        others_have=lambda version: heartbeat.others_have(version.name, version.weights),
    )
    tasks = [
        BackgroundTask("heartbeat", heartbeat.run_once, HEARTBEAT_EVERY_S),
        BackgroundTask("watchdog", watchdog.run_once, CHECK_EVERY_S, to_the_end=True),
        BackgroundTask("reaper", reaper.run_once, REAP_EVERY_S),
        BackgroundTask("change listener", listener.run_once),
        BackgroundTask("intake", intake.run_once),
        BackgroundTask("result sender", sender.run_once),
        BackgroundTask("snapshot saver", saver.run_once),
        BackgroundTask("preview sender", previews.run_once),
    ]

    if keeper is not None:
        tasks.append(BackgroundTask("models", keeper.run_once, MODELS_POLL_EVERY_S))
    if store.external:
        tasks += [
            BackgroundTask("results cleanup", cleanup.run_once, POLL_EVERY_S),
            BackgroundTask(
                "results store", lambda: watched.try_out(shards.name), HEARTBEAT_EVERY_S
            ),
        ]
    parts = WorkerParts(
        shards=shards,
        writer=writer,
        messages=messages,
        load=load,
        intake=intake,
        sender=sender,
        saver=saver,
        previews=previews,
        heartbeat=heartbeat,
        watchdog=watchdog,
        slowdown=slowdown,
        counters=counters,
        threads=threads,
        tasks=tasks,
        put_away=keeper.put_away if keeper else lambda key: None,
    )
    return WorkerLoop(models, parts, clock)


def device_setting(asked: str) -> torch.device:
    """Choose the device that DDPM_DEVICE names.

    Raises:
        ValueError: The device cannot be used.
    """
    try:
        return choose_device(asked)
    except UnusableDevice as error:
        raise ValueError(f"DDPM_DEVICE={error}") from None


class OfferedModels:
    """What a worker can load, and how.

    Attributes:
        offers: the models that there are.
        bound: bytes that all models in memory may take together.
        pool_images: images that a model's pool holds at most.
        faults: by name, why models could not be loaded at the start.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the catalog, leaving out cards that cannot be read. It is reread by `clock`."""
        self._settings = settings
        self._device = device
        roots = _roots(settings)
        for root in roots:
            remove_ownerless(root)
        catalog = LiveCatalog(*roots, skip=lambda fault: None, clock=clock)
        names = settings.models
        self.offers = Offers(catalog, roots, lambda name: not names or name in names)
        self.bound = models_memory(settings, device)
        self.pool_images = settings.pool_images
        self.faults: dict[str, str] = {}

    def check(self, offer: Offer) -> None:
        """Refuse a model that no worker of these settings can serve.

        Raises:
            ValueError: it needs a results store.
        """
        _check_store(offer.card, self._settings)

    def place(
        self, offer: Offer, checkpoint: Checkpoint, between: Callable[[], None]
    ) -> LoadedModel:
        """Make a model ready to step, whose weights were read.

        Raises:
            Exception: it cannot be served.
        """
        models = len(self.offers.names)
        name, device = offer.card.name, self._device
        return _load(offer.catalog, name, self._settings, device, models, checkpoint, between)


def models_memory(settings: WorkerSettings, device: torch.device) -> int:
    """Return the bytes that all models in memory may take together.

    The default leaves room for steps, and on a host for weights that are read.
    """
    if settings.models_memory:
        return int(settings.models_memory)
    return memory_bytes(device) * 4 // 5 if device.type == "cuda" else memory_bytes(device) // 2


def load_models(
    settings: WorkerSettings, device: torch.device, noted: dict[str, str] | None = None
) -> dict[str, LoadedModel]:
    """Load the models that DDPM_MODELS names, or all of the catalog, by name, as far as they fit.

    A model that cannot be served is left out, and the log names it. One that does not fit the
    memory that models may take beside those before it is loaded when jobs of it wait.

    Args:
        settings: those of the worker.
        device: where the models run.
        noted: takes by name why models cannot be served.

    Raises:
        CatalogError: No card can be read.
        BadCheckpoint: No model can be loaded.
        ValueError: The catalog lacks a model, or none can be run as the settings ask: without a
            results store, large images cannot.
    """
    catalog = Catalog.read(
        *_roots(settings),
        skip=lambda fault: log.error(_NOT_SERVED, fault, extra=event("model.not_served")),
    )
    names = settings.models or tuple(catalog)
    for name in names:
        if name not in catalog:
            raise ValueError(f"DDPM_MODELS names {name!r}, the catalog holds {', '.join(catalog)}")
    models: dict[str, LoadedModel] = {}
    faults: dict[str, Exception] = {}
    bound = free = models_memory(settings, device)
    # the default one first, which most jobs are for
    for name in sorted(names, key=lambda name: name != catalog.default.name):
        offer = Offer(catalog[name], catalog.folder(name))
        needs = needed_bytes(offer.card, settings.pool_images)
        try:
            check_size(offer, needs, bound)
            if needs <= free:
                models[name] = _load(catalog, name, settings, device, len(names))
                free -= needs
        except Exception as error:
            faults[name] = _model_fault(name, device, error)
    if not models:
        raise next(iter(faults.values()))
    for name, fault in faults.items():
        if noted is not None:
            noted[name] = str(fault)
        log.error(_NOT_SERVED, fault, extra=event("model.not_served", model=name))
    return models


def _roots(settings: WorkerSettings) -> list[Path]:
    return [root for root in (SHIPPED, settings.models_dir) if root]


def _load(
    catalog: Catalog,
    name: str,
    settings: WorkerSettings,
    device: torch.device,
    models: int,
    checkpoint: Checkpoint | None = None,
    between: Callable[[], None] = lambda: None,
) -> LoadedModel:
    """Load one of so many models, which share the machine."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(settings.cache_dir / "triton"))
    _check_store(catalog[name], settings)
    return LoadedModel(
        catalog,
        name,
        device,
        settings.pool_images,
        settings.precision,
        CalibrationCache(settings.cache_dir),
        HostShare(settings.threads, min(models, _SHARING)),
        checkpoint,
        between,
    )


def _check_store(card: Card, settings: WorkerSettings) -> None:
    """Refuse a model whose chains are too large for Redis, if there is no results store.

    Raises:
        ValueError: the model needs one.
    """
    shape = card.shape.channels, card.shape.height, card.shape.width
    size_bytes = packed_bytes(shape) * SHARD_IMAGES
    if settings.results_url.get_secret_value() or size_bytes <= REDIS_SHARD_BYTES:
        return
    raise ValueError(
        f"the model {card.name!r} needs a results store: the chains of {SHARD_IMAGES} images of "
        f"{'x'.join(map(str, shape))} take {size_bytes / 1e6:.0f} MB, and Redis takes "
        f"{REDIS_SHARD_BYTES / 1e6:.0f} MB at most; set DDPM_RESULTS_URL, "
        "see docs/how-to/store-results-elsewhere.md"
    )


def _model_fault(name: str, device: torch.device, error: Exception) -> Exception:
    """Return what is wrong with the model.

    Raises:
        Exception: the error is none that one model has.
    """
    if is_out_of_memory(error):
        return ValueError(
            f"the model {name!r} does not fit the memory of {device} ({client_reason(error)}); "
            "leave it out of DDPM_MODELS, or give it a larger device"
        )
    if not isinstance(error, BadCheckpoint | CatalogError | ValueError):
        raise error
    return error


if __name__ == "__main__":
    sys.exit(main())
