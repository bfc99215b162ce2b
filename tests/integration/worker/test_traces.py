"""Traces: the spans that reach a collector, from a request of the API to a published shard."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from redis import Redis

from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.processes import ROOT, WorkerProcess, eventually
from tests.support.receiver import Receiver, receiver
from tests.support.server import create_fresh_app, serve
from worker.tracing import TracingUnavailable, start_tracing

WITHIN_S = 60  # for what takes a moment where the machine is not busy
TRACE, PARENT = "4b" * 16, "0f" * 8
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@dataclass
class Collector:
    """What takes spans over OTLP/HTTP."""

    hook: Receiver
    taken: int = 0
    spans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.hook.port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def of(self, name: str, **about: object) -> list[dict[str, Any]]:
        """Return the spans of a name that have these attributes."""
        for request in self.hook.received[self.taken :]:
            assert request.path == "/v1/traces"
            self.spans += _spans(request.body)
            self.taken += 1
        wanted = {f"ddpm.{key}": value for key, value in about.items()}
        return [
            span
            for span in self.spans
            if span["name"] == name and wanted.items() <= span["about"].items()
        ]

    def one(self, name: str, **about: object) -> dict[str, Any]:
        """Wait for the one span of a name that has these attributes."""
        eventually(lambda: self.of(name, **about), WITHIN_S, f"a span {name}")
        [span] = self.of(name, **about)
        return span


def _spans(body: bytes) -> Iterator[dict[str, Any]]:
    for of_service in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _about(of_service.resource.attributes)["service.name"]
        for scope in of_service.scope_spans:
            for span in scope.spans:
                yield {
                    "service": service,
                    "name": span.name,
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "began": span.start_time_unix_nano,
                    "ended": span.end_time_unix_nano,
                    "is_error": span.status.code == 2,
                    "about": _about(span.attributes),
                }


def _about(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with receiver() as hook:
        collector = Collector(hook)
        for name, text in collector.env.items():
            monkeypatch.setenv(name, text)
        yield collector


def test_a_trace_leads_from_the_post_through_the_shard_to_its_images(
    settings: ApiSettings, redis: Redis, collector: Collector, tmp_path: Path
) -> None:
    write_model(tmp_path / "models", "tiny")
    where = {"redis_url": str(settings.redis_url), "models_dir": str(tmp_path / "models")}
    worker = WorkerProcess(tmp_path / "log", device="cpu", models="tiny", **where)
    body = {"model": "tiny", "count": 2, "steps": 3}
    try:
        with (
            serve(create_fresh_app(ApiSettings.model_validate(where))) as url,
            httpx.Client(base_url=url, timeout=60) as api,
        ):
            headers = {"traceparent": TRACEPARENT}
            traced = api.post("/v1/jobs", json=body, headers=headers).json()["id"]
            alone = api.post("/v1/jobs", json=body).json()["id"]
            api.get(f"/v1/jobs/{traced}?link=secret")
            assert api.get("/healthz").status_code == 200
            assert api.get("/v1/nowhere").status_code == 404
            shard = collector.one("shard", job=traced)
            post = next(
                span for span in collector.of("POST /v1/jobs") if span["id"] == shard["parent"]
            )
            collector.one("GET /v1/jobs/{job_id}", job=traced)
            collector.one("GET none")
            assert collector.one("shard", job=alone)["trace"] not in ("", TRACE)
    finally:
        worker.stop(60)
    assert (post["trace"], post["parent"], post["service"]) == (TRACE, PARENT, "ddpm-api")
    assert post["about"]["http.response.status_code"] == 202
    assert post["about"]["ddpm.owner"] == "local"
    assert (shard["trace"], shard["service"]) == (TRACE, "ddpm-worker")
    expected = {"outcome": "finished", "images": 2, "steps": 3, "attempt": 1, "owner": "local"}
    assert {f"ddpm.{key}": value for key, value in expected.items()}.items() <= shard[
        "about"
    ].items()
    assert not shard["is_error"]
    parts = [
        span
        for name in ("wait", "run", "publish")
        for span in collector.of(name)
        if span["parent"] == shard["id"]
    ]
    assert [span["name"] for span in parts] == ["wait", "run", "publish"]
    times = [shard["began"], *(span["ended"] for span in parts)]
    assert [span["began"] for span in parts] == times[:-1]
    assert times == sorted(times)
    assert shard["ended"] == times[-1]
    assert len(collector.spans) == len({span["id"] for span in collector.spans}) < 20
    assert not [span for span in collector.spans if "healthz" in span["name"]]
    assert b"secret" not in b"".join(request.body for request in collector.hook.received)


def test_a_request_that_is_not_sampled_sends_no_span_and_passes_that_on(
    settings: ApiSettings, redis: Redis, collector: Collector
) -> None:
    with serve(create_fresh_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as api:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        job = api.post("/v1/jobs", json={"model": "tiny"}, headers=headers).json()["id"]
        kept = redis.hget(f"ddpm:job:{job}", "traceparent").decode()
        api.get("/v1/models")
        collector.one("GET /v1/models")
    assert kept.startswith(f"00-{TRACE}-")
    assert kept.endswith("-00")
    assert collector.of("POST /v1/jobs") == []


def test_a_collector_that_does_not_answer_keeps_nobody_waiting(
    settings: ApiSettings, redis: Redis, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    # No later test meets what the exporter says in the end.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serve(create_fresh_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as api:
        assert api.post("/v1/jobs", json={"model": "tiny"}).status_code == 202
    assert collector.hook.received == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER='jaeger' is not known here"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL='grpc' is not known here; set it to http/protobuf",
        ),
    ],
)
def test_traces_that_cannot_be_sent_are_refused_with_the_remedy(
    env: dict[str, str], said: str
) -> None:
    with pytest.raises(TracingUnavailable, match="set it to") as refused:
        start_tracing("ddpm-api", env)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_being_asked_there_are_no_traces(env: dict[str, str]) -> None:
    assert start_tracing("ddpm-api", env) is None


def test_the_variables_name_the_service(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    tracing = start_tracing("ddpm-api")
    assert tracing is not None
    tracing.begin("").end("GET", "/v1/me", 503)
    tracing.close()
    span = collector.one("GET /v1/me")
    assert (span["service"], span["is_error"], span["parent"]) == ("pictures", True, "")


def _python(code: str, **env: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **env}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Stands for a machine without the extra.
WITHOUT_THE_EXTRA = "import sys; sys.modules['opentelemetry.sdk'] = None; "


def test_nothing_of_the_sdk_is_imported_where_nobody_asks() -> None:
    code = (
        "import sys; from worker.tracing import start_tracing; start_tracing('ddpm'); "
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert _python(code) == "False"
    assert _python(WITHOUT_THE_EXTRA + code.partition("; ")[2].replace("any", "not any")) == "False"


def test_a_service_without_the_extra_says_how_to_install_it() -> None:
    code = WITHOUT_THE_EXTRA + "from cli.main import app; app(['api', '--port', '8019'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "ask for traces, and opentelemetry.sdk" in said
    assert "make extra EXTRA=otel" in said
    assert "Traceback" not in said
