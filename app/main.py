"""The API's process: `uvicorn app.main:create_app --factory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import State
from starlette.middleware.cors import CORSMiddleware

from app import openapi
from app.access.gate import Gate, host_names
from app.access.key_file import KeySource
from app.access.rate_limit import RateLimit
from app.access.signed_links import LinkSigner
from app.access.streams import OpenStreams, StreamLimit
from app.events.previews import PreviewReader
from app.events.watcher import EventWatcher
from app.http.event_source import EventSourceErrors
from app.http.middleware import AnswerHeaders, BodyLimit, HeadAsGet
from app.http.proxies import ProxyHeaders, TrustedProxies
from app.http.request_log import RequestLog, RouteNote
from app.images.contact_sheets import ContactSheets
from app.images.reader import ImageReader
from app.jobs.admission import Admission
from app.jobs.bounds import Bounds
from app.jobs.commands import JobCommands
from app.jobs.durability import WAIT_S
from app.jobs.group_commit import GroupCommit
from app.jobs.images import JobImages
from app.jobs.queries import JobQueries
from app.operation import redis_client
from app.operation.api_metrics import ApiMetrics, sampling
from app.operation.background import noting_failures
from app.operation.readiness import WriteProbe
from app.operation.reaper import ReaperTask
from app.operation.server_check import ServerCheck
from app.problems import exception_handlers
from app.problems.problems import Internal, problems
from app.records.links import ROOT_PATH
from app.records.notifier import Notifier
from app.records.queue_reader import QueueReader
from app.routers import events, health, images, jobs, links, me, models, page
from app.routers.fast_status import FastStatus
from app.settings import ApiSettings
from app.webhooks.delivery import Delivery
from app.webhooks.sender import Sender
from app.webhooks.target import Reach
from models.checkpoints.catalog import SHIPPED
from models.checkpoints.live_catalog import LiveCatalog
from worker.results.url import open_store
from worker.tracing import start_tracing

_DURABLE_TIMEOUT_S = WAIT_S + 0.3
_ABOUT = "Samples from denoising diffusion models. The same seed gives the same bytes."
_CORS_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "X-Request-Id",
    "traceparent",
)
_CORS_ANSWER_HEADERS = (
    "Location",
    "ETag",
    "Retry-After",
    "RateLimit",
    "RateLimit-Policy",
    "Content-Disposition",
    "X-Request-Id",
)
# Browsers ask again after two hours at the latest.
_PREFLIGHT_S = 7200
_ROUTERS = (jobs, images, events, links, models, me, health, page)


def create_app(settings: ApiSettings | None = None, limits_fd: int | None = None) -> FastAPI:
    """Build the API from its settings, by default those of the environment.

    Redis and the results store need not be reachable yet.

    Args:
        settings: What the operator has chosen.
        limits_fd: A file of `rate_limit.FILE_BYTES` in which all processes of this host count
            requests. None for one process.

    Raises:
        CatalogError: no model can be served.
        BadStoreUrl: `results_url` names no store that can be used.
        BadKeys: `api_keys` or `api_keys_file` cannot be used.
        TracingUnavailable: the OTEL_* variables ask for traces that cannot be sent.
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
        # app/routers/page.py serves the document: FastAPI writes it anew at each request.
        openapi_url=None,
        generate_unique_id_function=openapi.operation_id,
        responses=problems(Internal),
        # Its spans would hold queries, and a query may hold a signed link. worker/tracing.py makes
        # those of this service.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    keys = KeySource(settings.api_keys.get_secret_value(), settings.api_keys_file)
    _assemble(app.state, settings)
    for module in _ROUTERS:
        app.include_router(module.router)
    _add_middleware(app, settings, keys, limits_fd)
    exception_handlers.install_handlers(app)
    openapi.describe(app)
    return app


def _add_middleware(
    app: FastAPI, settings: ApiSettings, keys: KeySource, limits_fd: int | None
) -> None:
    """Add what every request goes through. The last one added is the first to see it."""
    proxies = TrustedProxies.parse(settings.trusted_proxies)
    app.add_middleware(RouteNote)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(FastStatus, queries=app.state.queries)
    app.add_middleware(HeadAsGet)
    app.add_middleware(StreamLimit, streams=app.state.streams)
    app.add_middleware(
        Gate,
        keys=keys,
        limit=RateLimit(settings.key_requests_per_s, limits_fd),
        anonymous_hosts=host_names(settings.anonymous_hosts),
        links=app.state.links,
    )
    if settings.cors_origins:
        # Before the gate, as a preflight has no key. Keys travel in a header, so no page of
        # another origin needs cookies.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_ANSWER_HEADERS,
            max_age=_PREFLIGHT_S,
        )
    app.add_middleware(EventSourceErrors)
    app.add_middleware(AnswerHeaders)
    app.add_middleware(ProxyHeaders, trusted=proxies, root_path=settings.root_path)
    app.add_middleware(
        RequestLog,
        metrics=app.state.metrics,
        access_log=settings.access_log,
        tracing=app.state.tracing,
    )


def _assemble(state: State, settings: ApiSettings) -> None:
    """Build what handlers ask for (app/routers/dependencies.py), and the background tasks."""
    redis_url = settings.redis_url
    state.root_path = settings.root_path
    state.stopping = False
    state.failed_loops = []
    state.supervisor = settings.supervisor
    state.openapi_json = {}
    models_dirs = [settings.models_dir] if settings.models_dir else []
    state.catalog = LiveCatalog(SHIPPED, *models_dirs)
    state.metrics = ApiMetrics()
    state.tracing = start_tracing("ddpm-api")
    connections = settings.redis_connections
    state.redis = redis_client.connect(redis_url, connections=connections)
    state.durable_redis = redis_client.connect(redis_url, _DURABLE_TIMEOUT_S, connections)
    for client in (state.redis, state.durable_redis):
        redis_client.watch(client, state.metrics)
    state.links = LinkSigner(settings.link_secrets)
    state.streams = OpenStreams(settings.max_streams_per_key)
    state.write_probe = WriteProbe(state.redis)
    state.notifier = Notifier(state.redis)
    state.watcher = EventWatcher(state.redis, state.notifier)
    state.previews = PreviewReader(state.redis, state.notifier)
    results_store = open_store(settings.results_url.get_secret_value())
    state.image_reader = ImageReader(state.redis, results_store, failed=state.metrics.store_failed)
    state.contact_sheets = ContactSheets(state.image_reader)
    state.reaper = ReaperTask(redis_client.connect_in_thread(redis_url))
    state.server_check = ServerCheck(redis_client.connect_in_thread(redis_url))
    reach = Reach(settings.webhook_networks, settings.webhook_denied_networks)
    state.delivery = Delivery(state.redis, Sender(reach), settings.webhook_secrets)
    state.queue = QueueReader(state.catalog)
    state.queries = JobQueries(state.redis, state.notifier, state.queue)
    state.images = JobImages(
        state.redis, state.queries, state.image_reader, state.contact_sheets, state.previews
    )
    bounds = Bounds(
        of_one=settings.max_open_image_steps_per_key,
        of_all=settings.max_open_image_steps,
        jobs_open=settings.max_open_jobs_per_key,
        jobs_kept=settings.max_kept_jobs_per_key,
        bytes_kept=settings.max_kept_bytes_per_key,
    )
    commits = GroupCommit(state.durable_redis, state.queue)
    state.commands = JobCommands(
        state.redis,
        state.catalog,
        state.queries,
        state.queue,
        state.image_reader,
        Admission(commits, state.queue, bounds, state.catalog),
        settings.results_ttl_s,
        reach if settings.webhook_secrets else None,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the background tasks while the app serves, and close what it has opened."""
    # What webhooks say of a job comes from no request.
    ROOT_PATH.set(app.state.root_path)
    try:
        with noting_failures(app.state.failed_loops):
            async with (
                app.state.server_check.running(),
                app.state.notifier.running(),
                app.state.watcher.running(),
                app.state.reaper.running(),
                app.state.delivery.running(),
                sampling(app.state.metrics),
            ):
                yield
    finally:
        app.state.contact_sheets.close()
        app.state.image_reader.close()
        await app.state.redis.aclose()
        await app.state.durable_redis.aclose()
        if app.state.tracing:
            await asyncio.to_thread(app.state.tracing.close)
