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
from app.jobs.commands import JobCommands
from app.jobs.durability import WAIT_S
from app.jobs.images import JobImages
from app.jobs.queries import JobQueries
from app.operation import redis_client
from app.operation.reaper import ReaperTask
from app.operation.server_check import ServerCheck
from app.problems import exception_handlers
from app.problems.problems import Internal, problems
from app.records.notifier import Notifier
from app.routers import events, health, images, jobs, models, page
from app.routers.fast_status import FastStatus
from app.settings import ApiSettings
from app.webhooks.delivery import Delivery
from app.webhooks.sender import Sender
from app.webhooks.target import Reach
from models.checkpoints.catalog import SHIPPED, Catalog
from worker.results.url import open_store

_DURABLE_TIMEOUT_S = WAIT_S + 0.3
_ABOUT = "Samples from denoising diffusion models. The same seed gives the same bytes."
_ROUTERS = (jobs, images, events, models, health, page)


def create_app(settings: ApiSettings | None = None) -> FastAPI:
    """Build the API from its settings, by default those of the environment.

    Redis and the results store need not be reachable yet.

    Raises:
        CatalogError: no model can be served.
        BadStoreUrl: `results_url` names no store that can be used.
        BadKeys: `api_keys` cannot be used.
    """
    settings = settings or ApiSettings()
    app = FastAPI(
        title="ddpm",
        description=_ABOUT,
        lifespan=_lifespan,
        redirect_slashes=False,
        # app/routers/page.py serves /docs: FastAPI's own page loads its script from elsewhere.
        docs_url=None,
        redoc_url=None,
        responses=problems(Internal),
    )
    keyring = Keyring.parse(settings.api_keys.get_secret_value())
    webhook_secret = settings.webhook_secret.get_secret_value()
    _assemble(app.state, settings, webhook_secret)
    for module in _ROUTERS:
        app.include_router(module.router)
    _add_middleware(app, settings, keyring)
    exception_handlers.install_handlers(app)
    openapi.describe(app, app.state.catalog, keyring, webhooks=bool(webhook_secret))
    return app


def _add_middleware(app: FastAPI, settings: ApiSettings, keyring: Keyring) -> None:
    """Add what every request goes through. The last one added is the first to see it."""
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(FastStatus, queries=app.state.queries)
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        Gate,
        keyring=keyring,
        limit=RateLimit(settings.key_requests_per_s),
        anonymous_hosts=host_names(settings.anonymous_hosts),
    )


def _assemble(state: State, settings: ApiSettings, webhook_secret: str) -> None:
    """Build what handlers ask for (app/routers/dependencies.py), and the background tasks."""
    redis_url = str(settings.redis_url)
    models_dirs = [settings.models_dir] if settings.models_dir else []
    state.catalog = Catalog.read(SHIPPED, *models_dirs)
    state.redis = redis_client.connect(redis_url)
    state.durable_redis = redis_client.connect(redis_url, timeout_s=_DURABLE_TIMEOUT_S)
    state.notifier = Notifier(state.redis)
    state.watcher = EventWatcher(state.redis, state.notifier)
    state.previews = PreviewReader(state.redis, state.notifier)
    results_store = open_store(settings.results_url.get_secret_value())
    state.image_reader = ImageReader(state.redis, results_store)
    state.contact_sheets = ContactSheets(state.image_reader)
    state.reaper = ReaperTask(redis_client.connect_in_thread(redis_url))
    state.server_check = ServerCheck(redis_client.connect_in_thread(redis_url))
    reach = Reach(settings.webhook_networks)
    state.delivery = Delivery(state.redis, Sender(reach), webhook_secret)
    state.queries = JobQueries(state.redis, state.notifier)
    state.images = JobImages(
        state.redis, state.queries, state.image_reader, state.contact_sheets, state.previews
    )
    bounds = Bounds(
        of_one=settings.max_open_image_steps_per_key, of_all=settings.max_open_image_steps
    )
    state.commands = JobCommands(
        state.redis,
        state.catalog,
        state.queries,
        state.image_reader,
        Admission(state.durable_redis, bounds),
        settings.results_ttl_s,
        reach if webhook_secret else None,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the background tasks while the app serves, and close what it has opened."""
    try:
        async with (
            app.state.server_check.running(),
            app.state.notifier.running(),
            app.state.watcher.running(),
            app.state.reaper.running(),
            app.state.delivery.running(),
        ):
            yield
    finally:
        app.state.contact_sheets.close()
        app.state.image_reader.close()
        await app.state.redis.aclose()
        await app.state.durable_redis.aclose()
