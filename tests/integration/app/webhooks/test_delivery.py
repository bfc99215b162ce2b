"""Webhooks from the job to a real receiver: what arrives, and how often."""

from __future__ import annotations

import json
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

from app.settings import ApiSettings
from app.webhooks import delivery, sender
from app.webhooks.delivery import MAX_ATTEMPTS
from app.webhooks.signature import secret_of, text_of
from tests.support.processes import ROOT, eventually
from tests.support.receiver import Receiver
from tests.support.webhooks import SECRET, Post, due_now, ended, in_state, status
from tests.support.worker import IdleWorker
from worker.jobs.keys import WEBHOOKS, job_key

PAGE = ROOT / "docs" / "how-to" / "receive-webhooks.md"


def verified_as_documented(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """By the code of docs/how-to/receive-webhooks.md."""
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
    assert in_state(api, job["id"], "delivered") == {
        "state": "delivered",
        "attempts": 1,
        "said": "answered 204",
    }
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


def test_a_failed_and_a_cancelled_job_are_told_too(
    api: httpx.Client, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    failed, cancelled = (post(webhook=f"http://127.0.0.1:{hook.port}/")["id"] for _ in range(2))
    worker.fail(failed, "nan", "not a number")
    api.post(f"/v1/jobs/{cancelled}/cancel")
    in_state(api, failed, "delivered")
    in_state(api, cancelled, "delivered")
    told = {
        message["data"]["id"]: message["type"]
        for message in (json.loads(got.body) for got in hook.received)
    }
    assert told == {failed: "job.failed", cancelled: "job.cancelled"}


def test_a_receiver_that_fails_is_asked_again_with_the_same_id_and_a_new_signature(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [503, 302, 200]
    job = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")
    for attempt, said in ((1, "answered 503"), (2, "answered 302")):
        eventually(
            lambda attempt=attempt: (
                status(api, job)["attempts"] == attempt and status(api, job)["said"]
            ),
            10,
            said,
        )
        eventually(lambda said=said: status(api, job)["said"] == said, 10, said)
        assert status(api, job) == {"state": "pending", "attempts": attempt, "said": said}
        assert redis.zscore(WEBHOOKS, job) > time.time() + 2, "not at once"
        due_now(redis, job)
    assert in_state(api, job, "delivered")["attempts"] == 3
    assert [(got.path, got.headers["webhook-id"]) for got in hook.received] == [
        ("/", f"job_{job}")
    ] * 3
    secret = text_of(secret_of(SECRET, "local"))
    assert all(verified_as_documented(secret, got.headers, got.body) for got in hook.received)


def test_it_is_given_up_after_the_last_attempt_and_at_once_where_the_receiver_is_gone(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [500]
    first = post(webhook=f"http://127.0.0.1:{hook.port}/")["id"]
    redis.hset(job_key(first), "webhook_attempts", MAX_ATTEMPTS - 1)
    worker.fail(first, "nan", "not a number")
    assert in_state(api, first, "given_up") == {
        "state": "given_up",
        "attempts": MAX_ATTEMPTS,
        "said": "answered 500",
    }
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
    assert in_state(api, job, "given_up")["said"] == "the last attempt did not come to an end"
    assert hook.received == []


@pytest.fixture
def api_process(
    with_webhooks: ApiSettings, tmp_path: Path
) -> Iterator[Callable[[], tuple[httpx.Client, subprocess.Popen[bytes]]]]:
    """Starts `ddpm api` in a process of its own: a client of it, and the process."""
    with ExitStack() as stack:
        settings = {
            "REDIS_URL": str(with_webhooks.redis_url),
            "MODELS_DIR": str(with_webhooks.models_dir),
            "WEBHOOK_SECRET": SECRET,
        }
        env = {
            **os.environ,
            "DDPM_WEBHOOK_NETWORKS": "127.0.0.1",
            **{f"DDPM_{name}": value for name, value in settings.items()},
        }

        def start() -> tuple[httpx.Client, subprocess.Popen[bytes]]:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            command = [sys.executable, "-m", "cli", "api", "--port", str(port)]
            log = stack.enter_context((tmp_path / f"api-{port}.log").open("wb"))
            process = stack.enter_context(
                subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
            )
            stack.callback(process.kill)
            client = stack.enter_context(
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
            )
            eventually(lambda: _answers(client), 30, "the API answers")
            return client, process

        yield start


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


def test_a_webhook_is_sent_again_where_the_api_was_killed_while_it_sent_it(
    api_process: Callable[[], tuple[httpx.Client, subprocess.Popen[bytes]]],
    redis: Redis,
    worker: IdleWorker,
    hook: Receiver,
) -> None:
    first, process = api_process()
    hook.held = threading.Event()
    job = first.post(
        "/v1/jobs", json={"model": "tiny", "webhook": f"http://127.0.0.1:{hook.port}/"}
    ).json()["id"]
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
    assert [got.headers["webhook-id"] for got in hook.received] == [f"job_{job}"] * 2, (
        "and once only by the two that are left"
    )


def test_an_owners_place_is_kept_for_as_long_as_a_name_is_looked_for(
    api: httpx.Client,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one owner's names that hang could keep all threads; the outcome is noted in time all the same."""
    monkeypatch.setattr(sender, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(delivery, "_AT_ONCE_OF_ONE", 1)
    found, real = threading.Event(), socket.getaddrinfo

    def looked_up(host: str, *rest: Any, **more: Any) -> Any:
        return (
            real("127.0.0.1", *rest, **more) if host != "tarpit.example" or found.wait(20) else []
        )

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    stuck = ended(api, worker, post, "http://tarpit.example/")
    eventually(
        lambda: status(api, stuck)["said"] == "no answer in 0.2 s", 10, "the outcome is noted"
    )
    other = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")

    def is_put_off() -> bool:
        return (
            redis.zscore(WEBHOOKS, other) > time.time() + 1 and status(api, other)["attempts"] == 0
        )

    eventually(is_put_off, 10, "it is put off")
    assert hook.received == []
    found.set()
    due_now(redis, other)
    assert in_state(api, other, "delivered")["attempts"] == 1


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


def test_a_bug_is_noted_and_counted_like_any_other_failure(
    api: httpx.Client,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery.signature, "secret_of", lambda *_: 1 / 0)
    job = ended(api, worker, post, f"http://127.0.0.1:{hook.port}/")
    eventually(lambda: status(api, job)["said"], 10, "the first attempt is noted")
    assert status(api, job) == {
        "state": "pending",
        "attempts": 1,
        "said": "the service failed to send it, which is a bug",
    }
    monkeypatch.undo()
    monkeypatch.setattr(delivery, "_LOOK_EVERY_S", 0.02)
    due_now(redis, job)
    assert in_state(api, job, "delivered")["attempts"] == 2
