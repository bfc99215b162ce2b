"""The queries of docs/how-to/watch-the-service.md, asked of a real service and its log.

The service is an API and a worker in processes of their own. Prometheus scrapes the API.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_py
from prometheus_client.parser import text_string_to_metric_families

from tests.support.folders import write_model
from tests.support.processes import ROOT, WorkerProcess, eventually
from tests.support.valkey import valkey_server
from tests.support.webhooks import SECRET
from worker.jobs.domain import Priority
from worker.jobs.keys import job_key, rotation_name
from worker.process.shard_leases import ShardLeases

PAGE = ROOT / "docs" / "how-to" / "watch-the-service.md"
METRICS_PAGE = ROOT / "docs" / "reference" / "metrics.md"
MONITORING = ROOT / "deploy" / "monitoring"
WITHIN_S = 90
QUERIES = [
    (title, language, code)
    for title, body in re.findall(
        r"^### (.+?)\n(.*?)(?=^### |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    for language, code in re.findall(r"```(promql|bash)\n(.*?)```", body, re.DOTALL)
]
PROMQL = [(title, code) for title, language, code in QUERIES if language == "promql"]

pytestmark = [pytest.mark.redis, pytest.mark.slow]


@dataclass
class WatchedService:
    """A running service: a client of its API, its log, and the job that was drawn."""

    http: httpx.Client
    log: Path
    finished: str
    given_up: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedService]:
    """A service that has finished, failed and lost jobs, and given a webhook up."""
    root = tmp_path_factory.mktemp("watched")
    log = root / "service.log"
    for name, more in (("tiny", {}), ("blows-up", {"blow_up": True}), ("lost", {})):
        write_model(root / "models", name, **more)
    with ExitStack() as stack:
        server = stack.enter_context(
            valkey_server(root / "valkey", save="", appendonly="no", maxmemory="1gb")
        )
        url = f"{server.connection_url}/0"
        settings = {
            "models_dir": str(root / "models"),
            "redis_url": url,
            "log_format": "json",
            "webhook_secret": SECRET,
            "webhook_networks": "127.0.0.1",
        }
        worker = WorkerProcess(
            log, device="cpu", models="tiny,blows-up", worker_name="box-0", **settings
        )
        stack.callback(worker.stop, 60)
        redis = stack.enter_context(redis_py.Redis.from_url(url))
        api = stack.enter_context(api_process(log, settings))
        yield happened(api, redis, log)


@pytest.fixture(scope="module")
def prometheus(watched: WatchedService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus with the configuration of deploy/monitoring, but for its target and its pace."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not here; apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    for file in MONITORING.glob("*"):
        if file.is_file():
            shutil.copy(file, folder)
    config = folder / "prometheus.yml"
    text = config.read_text().replace("api:8000", watched.http.base_url.netloc.decode())
    config.write_text(text.replace("15s", "1s"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://{address}"
        eventually(lambda: value(url, 'up{job="ddpm"}') == 1, WITHIN_S, "Prometheus scrapes")
        # A second scrape, after more requests: a rate needs two.
        for _ in range(3):
            happens_again(watched)
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


class api_process:
    """`ddpm api`, and a client of it."""

    def __init__(self, log: Path, settings: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        env = {name: text for name, text in os.environ.items() if not name.startswith("DDPM_")}
        env |= {f"DDPM_{name.upper()}": text for name, text in settings.items()}
        env["DDPM_API_PROCESSES"] = "2"
        command = [sys.executable, "-m", "cli", "api", "--port", str(port)]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
            )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def __enter__(self) -> httpx.Client:
        eventually(self._answers, WITHIN_S, "the API answers")
        return self._http

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(60)

    def _answers(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False


def happened(api: httpx.Client, redis: redis_py.Redis, log: Path) -> WatchedService:
    def post(**request: Any) -> str:
        response = api.post("/v1/jobs", json=request, headers={"x-request-id": "r-1"})
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def has_ended(job: str) -> bool:
        return api.get(f"/v1/jobs/{job}").json()["state"] not in ("queued", "running")

    ended = [post(model="tiny", count=2, steps=5), post(model="blows-up", count=1, steps=5)]
    for job in ended:
        eventually(lambda job=job: has_ended(job), WITHIN_S, f"job {job} has ended")
    rotation = rotation_name(Priority.INTERACTIVE, "lost")
    post(model="lost", count=1)
    assert ShardLeases(redis, [rotation], lease_s=0.5).take([rotation]) is not None
    given_up = post(model="lost", count=1, webhook="http://127.0.0.1:8009/hook?token=t0ken-1234")
    redis.hset(job_key(given_up), "webhook_attempts", 9)
    api.post(f"/v1/jobs/{given_up}/cancel")
    for event in ("webhook.given_up", "shard.lost", "shard.finished"):
        eventually(lambda event=event: event in log.read_text(), WITHIN_S, event)
    return WatchedService(api, log, ended[0], given_up)


def happens_again(watched: WatchedService) -> None:
    request = {"model": "tiny", "count": 2, "steps": 5}
    for _ in range(5):
        watched.http.post("/v1/jobs", json=request)


def result(url: str, query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def value(url: str, query: str) -> float | None:
    try:
        found = result(url, query)
    # It starts, and has no JSON yet.
    except (httpx.HTTPError, ValueError):
        return None
    return float(found[0]["value"][1]) if found else None


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def answer(watched: WatchedService, title: str, **env: str) -> str:
    """Return what the commands of a question print."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not here; apt-get install jq")
    [code] = [code for asked, kind, code in QUERIES if asked == title and kind == "bash"]
    asked = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=watched.log.parent,
        env=os.environ | env,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    return asked.stdout


def test_there_are_twelve_questions():
    assert len({title for title, _, _ in QUERIES}) == 12


@pytest.mark.parametrize(("title", "query"), PROMQL, ids=[title for title, _ in PROMQL])
def test_each_query_of_the_page_has_an_answer(prometheus: str, title: str, query: str):
    # Nobody was scraped a day ago.
    asked = re.sub(r" offset 1d", "", query)
    eventually(lambda: result(prometheus, asked), WITHIN_S, f"an answer to {title}")
    assert len(result(prometheus, query)) >= 0


def test_the_answers_are_those_of_what_happened(prometheus: str):
    def asked(title: str, nth: int = 0) -> list[dict[str, Any]]:
        queries = [query for found, query in PROMQL if found == title]
        return result(prometheus, queries[nth])

    [flood] = asked("Who floods?")
    assert flood["metric"] == {"owner": "local"}
    [post] = asked("How long does a POST take?")
    assert 0 < float(post["value"][1]) < 60
    [oldest] = asked("How old is the oldest queued job?")
    assert oldest["metric"] == {"model": "lost", "priority": "interactive"}
    [full] = asked("How full is the job store?")
    assert 0 < float(full["value"][1]) < 0.5
    alike = asked("Which workers differ in fingerprint?")
    assert {found["metric"]["model"] for found in alike} == {"tiny", "blows-up"}
    slowdown = asked("Is a worker slower than yesterday?", 1)
    assert [found["metric"] for found in slowdown] == [{"worker": "box-0"}]
    failed = result(prometheus, 'max by (reason) (ddpm_jobs_ended_total{state="failed"} > 0)')
    assert [(f["metric"]["reason"], f["value"][1]) for f in failed] == [("not_finite", "1")]
    assert value(prometheus, 'max(ddpm_shard_losses_total{outcome="requeued"})') == 1


def test_no_alert_of_a_sound_service_has_an_error(prometheus: str):
    rules = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert len(rules) > 10
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []


def test_the_log_says_how_many_jobs_failed_and_why(watched: WatchedService):
    found = answer(watched, "How many jobs failed since midnight, and why?")
    assert found.split() == ["1", "not_finite"]


def test_the_log_says_which_webhooks_were_given_up(watched: WatchedService):
    [found] = answer(watched, "Which webhooks were given up?").splitlines()
    assert (json.loads(found)["job"], json.loads(found)["owner"]) == (watched.given_up, "local")


def test_the_log_says_what_happened_to_a_job(watched: WatchedService):
    found = answer(watched, "What happened to job X?", JOB=watched.finished)
    told = [json.loads(line) for line in found.splitlines()]
    events = [line["event"] for line in told if line["event"] != "request.answered"]
    # A worker may have begun before the answer is written.
    assert sorted(events) == ["job.submitted", "shard.finished", "shard.started"]
    of_worker = [line for line in told if line["worker"]]
    assert {(line["worker"], line["request_id"]) for line in of_worker} == {("box-0", "r-1")}


def test_readiness_says_which_worker_is_at_fault(watched: WatchedService):
    found = answer(
        watched, "Is the results store failing?", DDPM_URL=str(watched.http.base_url).rstrip("/")
    )
    assert [json.loads(line)["fault"] for line in found.splitlines()] == [""]


def test_every_line_has_what_the_reference_promises(watched: WatchedService):
    found = lines(watched.log)
    promised = {"time", "level", "logger", "event", "message", "process"}
    assert [line for line in found if not promised <= line.keys()] == []
    assert {line["process"] for line in found} == {"api", "worker"}
    assert [line for line in found if line["process"] == "worker" and not line["worker"]] == []
    assert "t0ken-1234" not in watched.log.read_text()
    assert SECRET not in watched.log.read_text()


def test_the_reference_lists_exactly_the_metrics_that_there_are(watched: WatchedService):
    families = text_string_to_metric_families(watched.http.get("/metrics").text)
    exported = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }
    listed = re.findall(r"^\| `(ddpm_\w+)` \|", METRICS_PAGE.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(exported)


def test_dashboard_alerts_and_queries_name_metrics_that_there_are(watched: WatchedService):
    scraped = watched.http.get("/metrics").text
    families = text_string_to_metric_families(scraped)
    samples = {sample.name for family in families for sample in family.samples}
    used = {
        name
        for file in (*MONITORING.rglob("*.json"), MONITORING / "alerts.yml", PAGE)
        for name in re.findall(r"\bddpm_[a-z_]+[a-z]\b", file.read_text())
    } - {"ddpm_http_", "ddpm_api_", "ddpm_redis_pool_"}
    # A worker without a results store reports no batch before its first step.
    assert sorted(used - samples) == []
