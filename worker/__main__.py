"""`python -m worker`: load the models, and serve until SIGTERM or SIGINT.

`build` shows which objects a worker consists of, and how they know each other.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.checkpoints.catalog import SHIPPED, Catalog, CatalogError
from models.checkpoints.diffusers_format import BadCheckpoint
from worker.backends.host import UnusableDevice, choose_device, is_out_of_memory
from worker.calibration.cache import CalibrationCache
from worker.calibration.slowdown import Slowdown
from worker.jobs.domain import Priority
from worker.jobs.keys import rotation_name
from worker.jobs.reaper import REAP_EVERY_S, Reaper
from worker.jobs.server_check import ClusterMode
from worker.jobs.worker_registry import WorkerInfo
from worker.process.background_threads import BackgroundTask, BackgroundThreads
from worker.process.heartbeat import HEARTBEAT_EVERY_S, Heartbeat
from worker.process.intake import ChangeListener, Intake
from worker.process.job_writer import JobWriter
from worker.process.load import WorkerLoad
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop, WorkerParts
from worker.process.messages import MessageQueue
from worker.process.previews import PreviewSender
from worker.process.result_sender import ResultSender
from worker.process.results_cleanup import POLL_EVERY_S, ResultsCleanup
from worker.process.shard_leases import ShardLeases
from worker.process.snapshot_saver import SnapshotSaver
from worker.process.watchdog import CHECK_EVERY_S, Watchdog
from worker.redaction import client_reason
from worker.results.store import ResultsStore
from worker.results.url import open_store
from worker.settings import WorkerSettings

log = logging.getLogger("worker")
_REDIS_TIMEOUT_S = 2.0
_NOT_SERVED = "%s; until then this worker serves its other models only"


def main() -> int:
    """Run a worker as the settings say; return the process's exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = WorkerSettings()
        device = device_setting(settings.device)
        store = open_store(settings.results_url.get_secret_value())
        models = load_models(settings, device)
    except (CatalogError, BadCheckpoint, ValueError) as error:
        log.error("%s", error)
        return 1
    redis = connect(str(settings.redis_url))
    worker = build(redis, models, str(device), store, heartbeat_file=settings.heartbeat_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.request_stop())
    try:
        worker.run()
    except ClusterMode as refused:
        log.error("%s", refused)
        return 1
    return 0


def connect(url: str) -> Redis:
    """Return a client with short timeouts and no hidden retries.

    Whoever calls it knows best what an unanswered command means.
    """
    return Redis.from_url(
        url,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def build(
    redis: Redis,
    models: Mapping[str, LoadedModel],
    device: str,
    store: ResultsStore,
    *,
    writer: JobWriter | None = None,
    heartbeat_file: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    cpu_clock: Callable[[], float] = time.thread_time,
) -> WorkerLoop:
    """Make a worker's objects, and connect them.

    `redis` is not asked anything here, so that a worker can be built while it is away.

    Args:
        redis: the job store.
        models: the models to serve, by name.
        device: the name of the device that they run on.
        store: where finished images lie.
        writer: takes the place of `JobWriter(redis, store)`.
        heartbeat_file: is touched at every heartbeat.
        clock: the time in seconds, from any beginning.
        cpu_clock: seconds of processor time of the calling thread.
    """
    threads = BackgroundThreads()
    messages = MessageQueue()
    load = WorkerLoad()
    slowdown = Slowdown()
    writer = writer or JobWriter(redis, store)
    shards = ShardLeases(redis, [rotation_name(p, name) for p in Priority for name in models])
    sender = ResultSender(shards, writer, messages, clock=clock)
    saver = SnapshotSaver(shards, writer, messages, clock=clock, cpu_clock=cpu_clock)
    previews = PreviewSender(redis)
    intake = Intake(shards, writer, models, load, messages, sender.is_full, clock=clock)
    listener = ChangeListener(redis, load, messages, previews)
    reaper = Reaper(redis, shards.lease_s)
    cleanup = ResultsCleanup(redis, store, threads.stopping)
    watchdog = Watchdog(shards)

    def describe() -> WorkerInfo:
        infos = {name: model.info for name, model in models.items()}
        return WorkerInfo(shards.name, device, infos, slowdown.slowed)

    heartbeat = Heartbeat(redis, shards, messages, describe, heartbeat_file)
    tasks = [
        BackgroundTask("heartbeat", heartbeat.run_once, HEARTBEAT_EVERY_S),
        BackgroundTask("watchdog", watchdog.run_once, CHECK_EVERY_S),
        BackgroundTask("reaper", reaper.run_once, REAP_EVERY_S),
        BackgroundTask("change listener", listener.run_once),
        BackgroundTask("intake", intake.run_once),
        BackgroundTask("result sender", sender.run_once),
        BackgroundTask("snapshot saver", saver.run_once),
        BackgroundTask("preview sender", previews.run_once),
    ]
    if store.external:
        tasks.append(BackgroundTask("results cleanup", cleanup.run_once, POLL_EVERY_S))
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
        threads=threads,
        tasks=tasks,
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


def load_models(settings: WorkerSettings, device: torch.device) -> dict[str, LoadedModel]:
    """Load the models that DDPM_MODELS names, or all of the catalog, by name.

    A model that cannot be served is left out, and the log names it.

    Raises:
        CatalogError: No card can be read.
        BadCheckpoint: No model can be loaded.
        ValueError: The catalog lacks a model, or none can be run as the settings ask.
    """
    roots = [root for root in (SHIPPED, settings.models_dir) if root]
    catalog = Catalog.read(*roots, skip=lambda fault: log.error(_NOT_SERVED, fault))
    names = settings.models or tuple(catalog)
    for name in names:
        if name not in catalog:
            raise ValueError(f"DDPM_MODELS names {name!r}, the catalog holds {', '.join(catalog)}")
    cache = CalibrationCache(settings.cache_dir)
    os.environ.setdefault("TRITON_CACHE_DIR", str(settings.cache_dir / "triton"))
    models: dict[str, LoadedModel] = {}
    faults: list[Exception] = []
    for name in names:
        try:
            models[name] = LoadedModel(
                catalog, name, device, settings.pool_images, settings.precision, cache
            )
        except Exception as error:
            faults.append(_model_fault(name, device, error))
    if not models:
        raise faults[0]
    for fault in faults:
        log.error(_NOT_SERVED, fault)
    return models


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
