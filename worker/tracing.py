"""Traces for OpenTelemetry, where its variables ask for them (docs/how-to/watch-the-service.md).

A request of the API is a span, and so is each attempt at a shard, with spans of what it waited, ran
and was published. Steps are none: there are too many. Where nobody asks, no SDK is imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

# Each asks for traces, by saying where they go.
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_ONLY_PROTOCOL = "http/protobuf"
# A process that ends waits no longer for whoever takes its last spans.
_CLOSE_WITHIN_S = 2.0
_NS = 1e9
_SERVER_ERRORS = 500


class TracingUnavailable(ValueError):
    """The OTEL_* variables ask for traces that cannot be sent. The text says the remedy."""


class RequestSpan:
    """The span of a request that is being answered.

    Attributes:
        traceparent: What goes on from it has this as its parent.
    """

    def __init__(self, span: Span) -> None:
        context = span.get_span_context()
        flags = int(context.trace_flags)
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
        self._span = span

    def end(self, method: str, route: str, status: int | None, **about: str) -> None:
        """End it.

        Args:
            method: Of the request.
            route: Template of its path.
            status: Of the answer; None where there was none.
            about: What else is known, by name.
        """
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {route}")
        attributes: dict[str, str | int] = {"http.request.method": method, "http.route": route}
        if status is not None:
            attributes["http.response.status_code"] = status
        self._span.set_attributes(attributes | _named(about))
        if status is None or status >= _SERVER_ERRORS:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """Makes spans, and sends them from a thread of its own. What cannot be sent is dropped."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take the SDK's provider, which knows where spans go."""
        self._provider = provider
        self._tracer = provider.get_tracer("ddpm")

    def begin(self, traceparent: str) -> RequestSpan:
        """Begin the span of a request, below its `traceparent` if that is not empty."""
        from opentelemetry.trace import SpanKind

        context = _context(traceparent)
        return RequestSpan(self._tracer.start_span("request", context, SpanKind.SERVER))

    def shard(
        self,
        traceparent: str,
        posted_at: float,
        taken_at: float,
        drawn_at: float,
        published_at: float,
        outcome: str,
        **about: str | int,
    ) -> None:
        """Send the spans of an attempt at a shard that has come to its end here.

        Args:
            traceparent: Of the request that posted the job; empty for none.
            posted_at: When the shard was posted, in seconds since the epoch.
            taken_at: When this worker took it.
            drawn_at: When its last image left the engine.
            published_at: When its last image was stored.
            outcome: What became of it: "finished", or why not.
            about: What else is known, by name.
        """
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        times = [posted_at, taken_at, drawn_at, published_at]
        # Hosts differ in their clocks, and a span cannot end before it begins.
        for n in range(len(times) - 1):
            times[n + 1] = max(times[n], times[n + 1])
        times_ns = [int(at * _NS) for at in times]
        whole = self._tracer.start_span(
            "shard",
            _context(traceparent),
            SpanKind.CONSUMER,
            _named(about | {"outcome": outcome}),
            start_time=times_ns[0],
        )
        within = set_span_in_context(whole)
        for name, began, ended in zip(
            ("wait", "run", "publish"), times_ns[:-1], times_ns[1:], strict=True
        ):
            self._tracer.start_span(name, within, start_time=began).end(ended)
        if outcome != "finished":
            whole.set_status(StatusCode.ERROR, outcome)
        whole.end(times_ns[-1])

    def close(self, within_s: float = _CLOSE_WITHIN_S) -> None:
        """Send the last spans, as far as there is time."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(within_s)


def start_tracing(service: str, env: Mapping[str, str] = os.environ) -> Tracing | None:
    """Return what makes this process's spans, or None where nobody asks for any.

    Args:
        service: Name of the service, unless OTEL_SERVICE_NAME says another.
        env: Variables of the environment. The SDK reads its own from the process's.

    Raises:
        TracingUnavailable: they ask for what is not installed, or not known here.
    """
    if not _are_asked(env):
        return None
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter != "otlp":
        raise TracingUnavailable(
            f"OTEL_TRACES_EXPORTER={exporter!r} is not known here; set it to otlp, or to none"
        )
    protocol = next((env[name] for name in _PROTOCOLS if env.get(name)), _ONLY_PROTOCOL)
    if protocol != _ONLY_PROTOCOL:
        raise TracingUnavailable(
            f"{next(name for name in _PROTOCOLS if env.get(name))}={protocol!r} is not known here; "
            f"set it to {_ONLY_PROTOCOL}, which collectors take on port 4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            f"the OTEL_* variables ask for traces, and {error.name} is not installed; install it "
            "with `make extra EXTRA=otel`, or set OTEL_SDK_DISABLED=true"
        ) from None
    resource = Resource.create()
    # What the SDK calls a service of which the variables say nothing.
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": service}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _are_asked(env: Mapping[str, str]) -> bool:
    exporter = env.get("OTEL_TRACES_EXPORTER", "").strip()
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(env.get(name) for name in _ENDPOINTS)


def _context(traceparent: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _named(about: Mapping[str, str | int]) -> dict[str, str | int]:
    return {f"ddpm.{name}": value for name, value in about.items() if value != ""}
