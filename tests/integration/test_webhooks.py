"""Webhooks from the job to a real receiver: what arrives, how often, and what nobody is told."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from app.webhooks import delivery
from app.webhooks.delivery import MAX_ATTEMPTS, pause_s
from app.webhooks.signature import secret_of, text_of
from tests.support.problems import problem
from tests.support.processes import ROOT, eventually
from tests.support.receiver import Receiver, receiver
from tests.support.server import serve
from tests.support.worker import IdleWorker
from worker.contract import WEBHOOKS, job_key

Post = Callable[..., dict[str, Any]]
SECRET = "a secret of the service, for tests"
PAGE = ROOT / "docs" / "webhooks.md"


@pytest.fixture
def with_webhooks(settings: ApiSettings) -> ApiSettings:
    return ApiSettings(**settings.model_dump() | {"webhook_secret": SECRET, "webhook_networks": "127.0.0.1"})


@pytest.fixture
def api(with_webhooks: ApiSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(delivery, "_LOOK_EVERY_S", 0.02)
    with serve(create_app(with_webhooks)) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def ended(api: httpx.Client, worker: IdleWorker, post: Post, url: str) -> str:
    """A job with a webhook that has just finished."""
    job: str = post(webhook=url)["id"]
    worker.start(job)
    worker.publish(job, [0])
    return job


def status(api: httpx.Client, job: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/v1/jobs/{job}").json()["webhook"]
    return found


def in_state(api: httpx.Client, job: str, state: str) -> dict[str, Any]:
    eventually(lambda: status(api, job)["state"] == state, 10, f"the webhook of {job} is {state}")
    return status(api, job)


def due_now(redis: Redis, job: str) -> None:
    redis.zadd(WEBHOOKS, {job: 0})


def verified_as_documented(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """By the code of docs/webhooks.md."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return bool(names["verified"](secret, headers, body))


def test_a_finished_job_is_told_signed_and_once(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    job = post(webhook=f"http://127.0.0.1:{hook.port}/hook?token=t0ken")
    assert job["webhook"] == {"state": "waiting", "attempts": 0, "said": None}
    assert redis.exists(WEBHOOKS) == 0
    worker.start(job["id"])
    worker.publish(job["id"], [0])
    assert in_state(api, job["id"], "delivered") == {"state": "delivered", "attempts": 1, "said": "answered 204"}
    (got,) = hook.received
    message, listed = json.loads(got.body), api.get("/v1/jobs").json()["jobs"][0]
    assert message == {"type": "job.finished", "timestamp": listed["finished_at"], "data": listed}
    assert (got.path, got.headers["content-type"]) == ("/hook?token=t0ken", "application/json")
    assert got.headers["webhook-id"] == f"job_{job['id']}"
    mine, bobs = (text_of(secret_of(SECRET, owner)) for owner in ("local", "bob"))
    assert verified_as_documented(mine, got.headers, got.body)
    assert not verified_as_documented(mine, got.headers, got.body + b" ")
    assert not verified_as_documented(bobs, got.headers, got.body)
    assert redis.exists(WEBHOOKS) == 0


def test_a_failed_and_a_cancelled_job_are_told_too(api: httpx.Client, worker: IdleWorker, post: Post, hook: Receiver) -> None:
    failed, cancelled = (post(webhook=f"http://127.0.0.1:{hook.port}/")["id"] for _ in range(2))
    worker.fail(failed, "nan", "not a number")
    api.post(f"/v1/jobs/{cancelled}/cancel")
    in_state(api, failed, "delivered")
    in_state(api, cancelled, "delivered")
    told = {message["data"]["id"]: message["type"] for message in (json.loads(got.body) for got in hook.received)}
    assert told == {failed: "job.failed", cancelled: "job.cancelled"}


def test_a_receiver_that_fails_is_asked_again_with_the_same_id_and_a_new_signature(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [503, 302, 200]
    job = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")
    for attempt, said in ((1, "answered 503"), (2, "answered 302")):
        eventually(lambda attempt=attempt: status(api, job)["attempts"] == attempt and status(api, job)["said"], 10, said)
        eventually(lambda said=said: status(api, job)["said"] == said, 10, said)
        assert status(api, job) == {"state": "pending", "attempts": attempt, "said": said}
        assert redis.zscore(WEBHOOKS, job) > time.time() + 2, "not at once"
        due_now(redis, job)
    assert in_state(api, job, "delivered")["attempts"] == 3
    assert [(got.path, got.headers["webhook-id"]) for got in hook.received] == [("/", f"job_{job}")] * 3
    secret = text_of(secret_of(SECRET, "local"))
    assert all(verified_as_documented(secret, got.headers, got.body) for got in hook.received)


def test_it_is_given_up_after_the_last_attempt_and_at_once_where_the_receiver_is_gone(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [500]
    first = post(webhook=f"http://127.0.0.1:{hook.port}/")["id"]
    redis.hset(job_key(first), "webhook_attempts", MAX_ATTEMPTS - 1)
    worker.fail(first, "nan", "not a number")
    assert in_state(api, first, "given_up") == {"state": "given_up", "attempts": MAX_ATTEMPTS, "said": "answered 500"}
    hook.statuses = [410]
    second = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")
    assert in_state(api, second, "given_up")["attempts"] == 1
    assert redis.exists(WEBHOOKS) == 0


def test_one_whose_attempts_never_came_to_an_end_is_given_up_without_another(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    """As where it takes the process down each time."""
    job = post(webhook=f"http://127.0.0.1:{hook.port}/")["id"]
    redis.hset(job_key(job), "webhook_attempts", MAX_ATTEMPTS)
    worker.fail(job, "nan", "not a number")
    assert in_state(api, job, "given_up")["said"] == "no attempt came to an end"
    assert hook.received == []


def test_the_attempts_take_about_six_hours_and_spread() -> None:
    pauses = [pause_s(attempts) for attempts in range(1, MAX_ATTEMPTS)]
    assert 4 <= pauses[0] <= 6
    assert max(pauses) <= 1.2 * 7200
    assert 4 * 3600 < sum(pauses) < 8 * 3600
    assert len({pause_s(1) for _ in range(10)}) == 10


@pytest.fixture
def api_process(
    with_webhooks: ApiSettings, tmp_path: Path
) -> Iterator[Callable[[], tuple[httpx.Client, subprocess.Popen[bytes]]]]:
    """Starts `ddpm api` in a process of its own: a client of it, and the process."""
    with ExitStack() as stack:
        settings = {"REDIS_URL": with_webhooks.redis_url, "MODELS_DIR": str(with_webhooks.models_dir), "WEBHOOK_SECRET": SECRET}
        env = {**os.environ, "DDPM_WEBHOOK_NETWORKS": "127.0.0.1", **{f"DDPM_{name}": value for name, value in settings.items()}}

        def start() -> tuple[httpx.Client, subprocess.Popen[bytes]]:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            command = [sys.executable, "-m", "cli", "api", "--port", str(port)]
            log = stack.enter_context((tmp_path / f"api-{port}.log").open("wb"))
            process = stack.enter_context(subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log))
            stack.callback(process.kill)
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10))
            eventually(lambda: _answers(client), 30, "the API answers")
            return client, process

        yield start


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


def test_a_webhook_is_sent_again_where_the_api_was_killed_while_it_sent_it(
    api_process: Callable[[], tuple[httpx.Client, subprocess.Popen[bytes]]], redis: Redis, worker: IdleWorker, hook: Receiver
) -> None:
    first, process = api_process()
    hook.held = threading.Event()
    job = first.post("/v1/jobs", json={"model": "tiny", "webhook": f"http://127.0.0.1:{hook.port}/"}).json()["id"]
    worker.start(job)
    worker.publish(job, [0])
    eventually(lambda: hook.received, 10, "the receiver is asked")
    process.kill()
    process.wait()
    assert redis.zscore(WEBHOOKS, job) > time.time() + 30, "nobody else gets it for a while"
    assert redis.ttl(WEBHOOKS) > 0, "where no API ever comes, it goes by itself"
    hook.held.set()
    second, _ = api_process()
    api_process()
    due_now(redis, job)  # the while is over
    assert in_state(second, job, "delivered")["attempts"] == 2
    assert [got.headers["webhook-id"] for got in hook.received] == [f"job_{job}"] * 2, "and once only by the two that are left"


def test_a_deleted_job_is_not_told_of_and_leaves_nothing(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [503]
    job = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")
    eventually(lambda: status(api, job)["said"], 10, "the first attempt is noted")
    assert api.delete(f"/v1/jobs/{job}").status_code == 204
    assert set(redis.keys("*")) <= {b"rq:queues"}
    due_now(redis, job)  # as if it had been claimed meanwhile
    eventually(lambda: not redis.exists(WEBHOOKS), 10, "an entry without a job is dropped")
    assert len(hook.received) == 1


def test_an_address_that_is_not_public_is_refused_at_once_or_when_its_name_is_known(
    api: httpx.Client, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    for url in (
        "http://127.0.0.2/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:8000/",
        "http://[::ffff:127.0.0.1]/",
    ):
        (error,) = problem(api.post("/v1/jobs", json={"model": "tiny", "webhook": url}), 422)["errors"]
        assert error["field"] == "webhook"
        assert "is not public; use one that is" in error["detail"]
    job = ended(api, worker, post, "http://name.invalid/")
    eventually(lambda: status(api, job)["said"], 20, "the attempt is noted")
    assert status(api, job)["said"] == "the host has no address that webhooks may go to"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@example.com/",
        "http://2130706433/",
        "http://example.com:25/",
        "gopher://x",
        "",
        "http://" + "x" * 2000,
    ],
)
def test_a_url_that_is_odd_is_refused_with_the_remedy(api: httpx.Client, url: str) -> None:
    (error,) = problem(api.post("/v1/jobs", json={"model": "tiny", "webhook": url}), 422)["errors"]
    assert error["field"] == "webhook"


def test_a_service_without_a_secret_refuses_webhooks(url: str, redis: Redis) -> None:
    answer = httpx.post(f"{url}/v1/jobs", json={"model": "tiny", "webhook": "https://example.com/"})
    assert "this service sends none; leave it out, or ask the operator for DDPM_WEBHOOK_SECRET" in problem(answer, 422)["detail"]


def test_the_url_is_in_no_log_and_no_answer(
    api: httpx.Client,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    hook: Receiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "app")
    hook.statuses = [503]
    job = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/t0ken")
    eventually(lambda: status(api, job)["said"], 10, "the first attempt is noted")
    api.post(f"/v1/jobs/{job}/cancel")
    answers = [api.get(f"/v1/jobs/{job}").text, api.get("/v1/jobs").text, hook.received[0].body.decode()]
    assert not [text for text in [*answers, caplog.text] if "t0ken" in text]
    hook.statuses = [410]
    due_now(redis, job)
    in_state(api, job, "given_up")
    assert f"the webhook of job {job} is given up after 2 attempts: answered 410" in caplog.text
    assert "t0ken" not in caplog.text


def test_a_bug_is_noted_and_counted_like_any_other_failure(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery.signature, "secret_of", lambda *_: 1 / 0)
    job = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")
    eventually(lambda: status(api, job)["said"], 10, "the first attempt is noted")
    assert status(api, job) == {"state": "pending", "attempts": 1, "said": "the service failed to send it, which is a bug"}
    monkeypatch.undo()
    monkeypatch.setattr(delivery, "_LOOK_EVERY_S", 0.02)
    due_now(redis, job)
    assert in_state(api, job, "delivered")["attempts"] == 2
