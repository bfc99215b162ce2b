"""`python -m worker`: load the models, serve until SIGTERM or SIGINT, give back unfinished work."""

from __future__ import annotations

import logging
import os
import signal
import sys

import torch
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.checkpoints.catalog import SHIPPED, Catalog, CatalogError
from models.checkpoints.diffusers_format import BadCheckpoint
from worker.backends.host import UnusableDevice, choose_device
from worker.calibration.cache import CalibrationCache
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.results.url import open_store
from worker.settings import WorkerSettings

log = logging.getLogger("worker")
_REDIS_TIMEOUT_S = 2.0


def main() -> int:
    """Run a worker, and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        settings = WorkerSettings()
        device = device_setting(settings.device)
        store = open_store(settings.results_url.get_secret_value())
        models = load_models(settings, device)
    except (CatalogError, BadCheckpoint, ValueError) as error:
        log.error("%s", error)
        return 1
    worker = WorkerLoop(connect(str(settings.redis_url)), models, str(device), store)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.crew.ask_to_stop())
    worker.run()
    return 0


def connect(url: str) -> Redis:
    """Make a Redis client with short timeouts and no hidden retries.

    Its callers know best what an unanswered command means.
    """
    return Redis.from_url(
        url,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


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

    Raises:
        CatalogError: A card cannot be read, or there is none.
        BadCheckpoint: A model cannot be loaded.
        ValueError: The catalog lacks a model, or a model cannot be run as the settings ask.
    """
    catalog = Catalog.read(*(root for root in (SHIPPED, settings.models_dir) if root))
    names = settings.models or tuple(catalog)
    for name in names:
        if name not in catalog:
            raise ValueError(f"DDPM_MODELS names {name!r}, the catalog holds {', '.join(catalog)}")
    cache = CalibrationCache(settings.cache_dir)
    os.environ.setdefault("TRITON_CACHE_DIR", str(settings.cache_dir / "triton"))
    return {
        name: LoadedModel(catalog, name, device, settings.pool_images, settings.precision, cache)
        for name in names
    }


if __name__ == "__main__":
    sys.exit(main())
