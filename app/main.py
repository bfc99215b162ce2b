"""The API's process: `uvicorn app.main:create_app --factory`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import State

from app import openapi
from app.access.api_keys import Keyring
from app.access.gate import Gate, host_names
from app.access.rate_limit import RateLimit
from app.events.previews import PreviewReader
from app.events.watcher import EventWatcher
from app.http.middleware import BodyLimit, HeadAsGet
from app.images.contact_sheets import ContactSheets
from app.images.reader import ImageReader
from app.jobs.admission import Admission, Bounds
from app.jobs.durability import WAIT_S
from app.jobs.jobs import Jobs
from app.operation import redis_client
from app.operation.reaper import ReaperTask
from app.problems import exception_handlers
from app.problems.problems import Internal, problems
from app.records.notifier import Notifier
from app.routers import events, health, jobs, models, page
from app.routers.fast_status import FastStatus
from app.settings import ApiSettings
from app.webhooks.delivery import Delivery
from app.webhooks.sender import Sender
from app.webhooks.target import Reach
from models.checkpoints.catalog import SHIPPED, Catalog
from worker.results.url import open_store

_DURABLE_TIMEOUT_S = WAIT_S + 0.3
_ABOUT = "Samples from denoising diffusion models. The same seed gives the same bytes."


def create_app(settings: ApiSettings | None = None) -> FastAPI:
    """Raises CatalogError where no model can be served, BadStoreUrl and BadKeys. Redis and the store need not be there yet."""
    settings = settings or ApiSettings()
    app = FastAPI(
        title="ddpm",
        description=_ABOUT,
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,  # app/routers/page.py has it: FastAPI's loads its script from elsewhere
        redoc_url=None,
        responses=problems(Internal),
    )
    keyring = Keyring.parse(settings.api_keys.get_secret_value())
    webhook_secret = settings.webhook_secret.get_secret_value()
    _assemble(app.state, settings, webhook_secret)
    for router in (jobs.router, events.router, models.router, health.router, page.router):
        app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(FastStatus, jobs=app.state.jobs)
    app.add_middleware(HeadAsGet)
    limit, hosts = RateLimit(settings.key_requests_per_s), host_names(settings.anonymous_hosts)
    app.add_middleware(Gate, keyring=keyring, limit=limit, anonymous_hosts=hosts)
    exception_handlers.install_handlers(app)
    openapi.describe(app, app.state.catalog, keyring, webhooks=bool(webhook_secret))
    return app


def _assemble(state: State, settings: ApiSettings, webhook_secret: str) -> None:
    """What handlers ask for (app/routers/dependencies.py), and what runs while the app does."""
    state.catalog = Catalog.read(SHIPPED, *([settings.models_dir] if settings.models_dir else []))
    redis_url = str(settings.redis_url)
    state.redis = redis_client.connect(redis_url)
    state.durable_redis = redis_client.connect(redis_url, timeout_s=_DURABLE_TIMEOUT_S)
    state.notifier = Notifier(state.redis)
    state.watcher = EventWatcher(state.redis, state.notifier)
    state.previews = PreviewReader(state.redis, state.notifier)
    state.pictures = ImageReader(state.redis, open_store(settings.results_url.get_secret_value()))
    state.sheets = ContactSheets(state.pictures)
    state.reaper = ReaperTask(redis_client.connect_in_thread(redis_url))
    reach = Reach(settings.webhook_networks)
    state.delivery = Delivery(state.redis, Sender(reach), webhook_secret)
    bounds = Bounds(
        of_one=settings.max_open_image_steps_per_key, of_all=settings.max_open_image_steps
    )
    state.jobs = Jobs(
        state.redis,
        state.catalog,
        state.notifier,
        state.pictures,
        state.sheets,
        state.previews,
        Admission(state.durable_redis, bounds),
        settings.results_ttl_s,
        reach if webhook_secret else None,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    try:
        async with (
            app.state.notifier.running(),
            app.state.watcher.running(),
            app.state.reaper.running(),
            app.state.delivery.running(),
        ):
            yield
    finally:
        app.state.sheets.close()
        app.state.pictures.close()
        await app.state.redis.aclose()
        await app.state.durable_redis.aclose()
