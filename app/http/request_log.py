"""The first step of every request: its id, its line in the log, and its place in the metrics."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.middleware import add_headers
from app.operation.api_metrics import ApiMetrics
from app.operation.origin import ORIGIN, origin_of
from app.problems.exception_handlers import render
from app.problems.problems import Internal
from worker.jobs.domain import Origin
from worker.logs import bind, bound_fields, event
from worker.tracing import RequestSpan, Tracing

log = logging.getLogger(__name__)
# Asked so often, and telling so little, that their lines are for those who debug.
_QUIET = frozenset({"/healthz", "/static/{name}"})
# A path that no route has, or that was refused before its route was looked up.
NO_ROUTE = "none"
_REQUEST_ID = b"x-request-id"
# Health checks, scrapes and files of the page are no part of anybody's trace.
_TRACED = "/v1/"


class RequestLog:
    """Gives each request an id, and counts and logs its answer.

    The id comes from `X-Request-Id`, or is made here. The answer has it too, and so do all log
    lines that the request causes, and those of the workers that run its job.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: ApiMetrics,
        access_log: bool = True,
        tracing: Tracing | None = None,
    ) -> None:
        """Take what counts requests, whether each has a line, and what makes spans of them."""
        self.app = app
        self._tracing = tracing
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and see its answer off."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        origin = origin_of(scope["headers"])
        # Steps that copy the scope share it.
        scope.setdefault("state", {})
        span = None
        if self._tracing and scope["path"].startswith(_TRACED):
            span = self._tracing.begin(origin.traceparent)
            origin = Origin(origin.request_id, span.traceparent)
        ORIGIN.set(origin)
        bind(**origin.log_fields)
        answer = _Answer(send, origin.request_id.encode(), self._metrics)
        is_wait = b"wait=" in scope["query_string"]
        metrics = self._metrics
        metrics.in_flight += 1
        metrics.waits += is_wait
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            log.exception(
                "a request failed by a bug of the service: %s", error, extra=event("request.failed")
            )
            # The client of a broken answer learns it from the end of its connection.
            if answer.status is not None:
                raise
            response = render(Internal())
            add_headers(response.headers)
            await response(scope, receive, answer.send)
        finally:
            metrics.in_flight -= 1
            metrics.waits -= is_wait
            metrics.streams -= answer.is_stream
            self._note(scope, answer, is_wait)
            if span:
                _end_span(span, scope, answer.status)

    def _note(self, scope: Scope, answer: _Answer, is_wait: bool) -> None:
        state = scope.get("state", {})
        template = state.get("route", NO_ROUTE)
        # app/access/gate.py binds it as soon as it knows whose key it is.
        owner = str(bound_fields().get("owner", ""))
        if answer.status is not None:
            name = f"{template}?wait" if is_wait and template != NO_ROUTE else template
            self._metrics.observe(
                scope["method"], name, answer.status, answer.began - answer.asked, owner
            )
        level = logging.DEBUG if template in _QUIET else logging.INFO
        if not self._access_log or not log.isEnabledFor(level):
            return
        ms = round(1000 * (time.perf_counter() - answer.asked), 2)
        job = state.get("job")
        log.log(
            level,
            "%s %s %s in %s ms, %d bytes",
            scope["method"],
            template,
            answer.status,
            ms,
            answer.size_bytes,
            extra=event(
                "request.answered",
                method=scope["method"],
                route=template,
                status=answer.status,
                duration_ms=ms,
                bytes=answer.size_bytes,
                **({"job": job} if job else {}),
            ),
        )


def _end_span(span: RequestSpan, scope: Scope, status: int | None) -> None:
    state = scope["state"]
    about = {"owner": str(bound_fields().get("owner", "")), "job": state.get("job") or ""}
    span.end(scope["method"], state.get("route", NO_ROUTE), status, **about)


class RouteNote:
    """The last step before the routes: notes which route the request has taken."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and note its route, whatever becomes of it."""
        try:
            await self.app(scope, receive, send)
        finally:
            if "route" in scope:
                note_route(scope, scope["route"].path, scope.get("path_params", {}).get("job_id"))


def note_route(scope: Scope, path: str, job: str | None) -> None:
    """Note a request's route, and the job that it names.

    Args:
        scope: Of the request.
        path: Template of the route.
        job: The job's id, if the route has one.
    """
    scope["state"] |= {"route": path, "job": job}


class _Answer:
    """An answer on its way: adds the request's id, and notes what goes out."""

    def __init__(self, send: Send, request_id: bytes, metrics: ApiMetrics) -> None:
        self._send = send
        self._id = request_id
        self._metrics = metrics
        self.asked = self.began = time.perf_counter()
        self.status: int | None = None
        self.size_bytes = 0
        self.is_stream = False

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self.began = time.perf_counter()
            self.status = message["status"]
            headers = message["headers"]
            self.is_stream = any(
                name == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in headers
            )
            self._metrics.streams += self.is_stream
            message["headers"] = [*headers, (_REQUEST_ID, self._id)]
        elif message["type"] == "http.response.body":
            self.size_bytes += len(message.get("body", b""))
        await self._send(message)


def note_refused(status: HTTPStatus, request_id: str, problem: str) -> None:
    """Log the answer to what never became a request: it was no HTTP, too large or too slow."""
    log.info(
        "a connection was answered with %d: %s",
        status,
        problem,
        extra=event(
            "connection.refused", status=int(status), problem=problem, request_id=request_id
        ),
    )
