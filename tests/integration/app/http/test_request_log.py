"""What the log and the answers say of requests, and what workers get to know of them."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from tests.support.processes import eventually
from tests.support.raw_http import ask
from tests.support.server import serve
from worker.jobs.domain import Priority
from worker.jobs.keys import SHARD_PREFIX, job_key, rotation_name
from worker.logs import JsonFormatter, Scrubber
from worker.process.shard_leases import ShardLeases

KEY, ENTRY = new_key("ann")
WITHIN_S = 60  # for what takes a moment where the machine is not busy
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


class Log(logging.Handler):
    """Keeps the lines of our loggers, as JSON has them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(JsonFormatter(Scrubber()))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of an event."""
        return [line for line in self.lines if line["event"] == event]


@pytest.fixture
def log() -> Iterator[Log]:
    handler, logger = Log(), logging.getLogger("app")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def app(settings: ApiSettings) -> FastAPI:
    return create_app(ApiSettings(**settings.model_dump() | {"api_keys": ENTRY}))


@pytest.fixture(scope="module")
def keyed(app: FastAPI) -> Iterator[str]:
    with serve(app) as url:
        yield url


@pytest.fixture
def ann(keyed: str, redis: Redis) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=keyed, timeout=10, headers=headers) as client:
        yield client


def posted(client: httpx.Client, **headers: str) -> dict[str, Any]:
    response = client.post("/v1/jobs", json={"model": "tiny", "count": 2}, headers=headers)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def answered(log: Log, **fields: object) -> dict[str, Any]:
    """Return the one access line that has these fields; it is written after the answer."""

    def found() -> list[dict[str, Any]]:
        lines = log.of("request.answered")
        return [line for line in lines if fields.items() <= line.items()]

    eventually(found, WITHIN_S, f"a line with {fields}")
    [line] = found()
    return line


@pytest.mark.parametrize("sent", ["a-1", "x" * 128, "!~"])
def test_a_request_id_is_taken_answered_and_logged(ann: httpx.Client, log: Log, sent: str):
    response = ann.get("/v1/models", headers={"x-request-id": sent})
    assert response.headers["x-request-id"] == sent
    line = answered(log, request_id=sent)
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/models", 200)
    assert line["owner"] == "ann"
    assert line["bytes"] == len(response.content)
    assert line["duration_ms"] > 0


@pytest.mark.parametrize("sent", ["", "x" * 129, "two words", "\u00fc"])
def test_a_request_id_that_cannot_be_one_is_replaced(ann: httpx.Client, sent: str):
    response = ann.get("/v1/models", headers={"x-request-id": sent.encode()})
    assert re.fullmatch("[0-9a-f]{24}", response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("HEAD", "/v1/models", 200),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/jobs", 405),
        ("POST", "/v1/jobs", 415),
        ("GET", "/v1/jobs/0123456789abcdef0123456789abcdef", 404),
        ("GET", "/v1/jobs/0123456789abcdef0123456789abcdef/events", 404),
    ],
)
def test_every_answer_has_a_request_id(ann: httpx.Client, method: str, path: str, status: int):
    response = ann.request(method, path, headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers.get_list("x-request-id")) == (status, ["mine"])


def test_an_answer_from_below_the_routes_has_a_request_id_too(ann: httpx.Client, log: Log):
    answer = ask(str(ann.base_url), b"NONSENSE\r\n\r\n")
    assert answer is not None
    [line] = log.of("connection.refused")
    assert (line["status"], line["request_id"]) == (400, answer.headers["x-request-id"])


def test_a_bug_is_logged_once_with_the_request_that_met_it(
    app: FastAPI, ann: httpx.Client, log: Log, caplog: pytest.LogCaptureFixture
):
    catalog, app.state.catalog = app.state.catalog, None
    try:
        response = ann.get("/v1/models", headers={"x-request-id": "unlucky"})
    finally:
        app.state.catalog = catalog
    assert (response.status_code, response.headers["x-request-id"]) == (500, "unlucky")
    assert response.headers["content-type"] == "application/problem+json"
    [line] = log.of("request.failed")
    assert (line["request_id"], line["level"]) == ("unlucky", "error")
    assert "Traceback" in line["exception"]
    assert [record for record in caplog.records if record.name == "uvicorn.error"] == []


def test_a_status_poll_is_logged_with_its_job_and_route(ann: httpx.Client, log: Log):
    job = posted(ann)["id"]
    for method in ("GET", "HEAD"):
        ann.request(method, f"/v1/jobs/{job}")
        assert answered(log, method=method, job=job)["route"] == "/v1/jobs/{job_id}"


def test_health_checks_and_static_files_have_no_line(ann: httpx.Client, log: Log):
    for path in ("/healthz", "/static/page.css", "/v1/models"):
        ann.get(path)
    assert answered(log, method="GET")["route"] == "/v1/models"


def test_no_line_of_a_request_holds_its_key_query_or_path(ann: httpx.Client, log: Log):
    ann.get("/v1/jobs?state=s3cret")
    ann.get("/pri/vate")
    answered(log, status=422)
    answered(log, status=404)
    told = str(log.lines)
    assert not [word for word in (KEY, "s3cret", "vate") if word in told]


def test_the_audit_log_says_who_submitted_cancelled_and_deleted_what(ann: httpx.Client, log: Log):
    job = posted(ann, **{"x-request-id": "r-1"})["id"]
    ann.post(f"/v1/jobs/{job}/cancel", headers={"x-request-id": "r-2"})
    ann.delete(f"/v1/jobs/{job}", headers={"x-request-id": "r-3"})
    told = {
        event: [(line["owner"], line["job"], line["request_id"]) for line in log.of(event)]
        for event in ("job.submitted", "job.cancelled", "job.deleted")
    }
    assert told == {
        "job.submitted": [("ann", job, "r-1")],
        "job.cancelled": [("ann", job, "r-2")],
        "job.deleted": [("ann", job, "r-3")],
    }


def test_a_refused_key_is_logged_and_does_not_show(ann: httpx.Client, log: Log):
    ann.get("/v1/jobs", headers={"authorization": "Bearer guessed-key"})
    [line] = log.of("key.refused")
    assert (line["status"], line["problem"], line["level"]) == (401, "unauthorized", "warning")
    assert "guessed-key" not in str(log.lines)


def test_a_request_and_its_trace_travel_to_the_worker(ann: httpx.Client, redis: Redis):
    job = posted(ann, **{"x-request-id": "r-1", "traceparent": TRACEPARENT})["id"]
    fields = redis.hmget(job_key(job), "request_id", "traceparent")
    assert fields == [b"r-1", TRACEPARENT.encode()]
    leases = ShardLeases(redis, [rotation_name(Priority.INTERACTIVE, "tiny")])
    lease = leases.take([rotation_name(Priority.INTERACTIVE, "tiny")])
    assert lease is not None
    assert lease.origin.traceparent == TRACEPARENT
    assert lease.log_fields == {
        "job": job,
        "shard": f"{job}-0",
        "owner": "ann",
        "request_id": "r-1",
        "trace_id": TRACE_ID,
    }


def test_a_shard_of_an_earlier_version_has_no_request(ann: httpx.Client, redis: Redis):
    job = posted(ann)["id"]
    redis.hdel(f"{SHARD_PREFIX}{job}-0", "request_id", "traceparent")
    redis.hdel(job_key(job), "request_id", "traceparent")
    rotation = rotation_name(Priority.INTERACTIVE, "tiny")
    lease = ShardLeases(redis, [rotation]).take([rotation])
    assert lease is not None
    assert lease.log_fields == {"job": job, "shard": f"{job}-0", "owner": "ann"}
    assert ann.get(f"/v1/jobs/{job}").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        "",
        TRACEPARENT.upper(),
        f"ff{TRACEPARENT[2:]}",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        TRACEPARENT + "-" + "x" * 100,
    ],
)
def test_a_traceparent_that_cannot_be_one_is_left_out(ann: httpx.Client, redis: Redis, sent: str):
    job = posted(ann, traceparent=sent)["id"]
    assert not redis.hexists(job_key(job), "traceparent")


def test_requests_at_once_keep_their_own_ids(ann: httpx.Client, log: Log):
    def ask(number: int) -> None:
        for turn in range(10):
            job = posted(ann, **{"x-request-id": f"{number}.{turn}"})["id"]
            seen[job] = f"{number}.{turn}"

    seen: dict[str, str] = {}
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line["job"]: line["request_id"] for line in log.of("job.submitted")} == seen


Scraped = Callable[[], dict[str, float]]


@pytest.fixture
def scraped(ann: httpx.Client) -> Scraped:
    """A call that returns the metrics of HTTP, by name and labels as text."""
    return lambda: {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in ann.get("/metrics").text.splitlines()
        if not line.startswith("#")
    }


def test_requests_are_counted_by_route_and_class_of_status(ann: httpx.Client, scraped: Scraped):
    count = 'ddpm_http_request_seconds_count{{method="{}",route="{}",status="{}"}}'
    before = scraped()
    job = posted(ann)["id"]
    for _ in range(3):
        ann.get(f"/v1/jobs/{job}")
    ann.get(f"/v1/jobs/{'0' * 32}")
    ann.get("/no/such/path")
    ann.get(f"/v1/jobs/{job}?wait=0.01")
    ann.request("BREW", "/v1/jobs")
    after = scraped()
    expected = {
        ("POST", "/v1/jobs", "2xx"): 1,
        ("GET", "/v1/jobs/{job_id}", "2xx"): 3,
        ("GET", "/v1/jobs/{job_id}", "4xx"): 1,
        ("GET", "none", "4xx"): 1,
        ("GET", "/v1/jobs/{job_id}?wait", "2xx"): 1,
    }
    for labels, more in expected.items():
        name = count.format(*labels)
        assert after[name] - before.get(name, 0) == more, name
    assert not [name for name in after if "BREW" in name]


def test_open_streams_and_waits_are_counted_while_they_last(ann: httpx.Client, scraped: Scraped):
    names = ("ddpm_event_streams_open", "ddpm_http_waits_open")
    job = posted(ann)["id"]
    waiting = threading.Thread(target=ann.get, args=(f"/v1/jobs/{job}?wait=30",))
    with ann.stream("GET", f"/v1/jobs/{job}/events") as stream:
        # Its end would end the stream.
        lines = stream.iter_lines()
        next(lines)
        waiting.start()
        eventually(lambda: [scraped()[name] for name in names] == [1, 1], WITHIN_S, "one of each")
    ann.post(f"/v1/jobs/{job}/cancel")
    waiting.join()
    eventually(lambda: [scraped()[name] for name in names] == [0, 0], WITHIN_S, "none is open")
