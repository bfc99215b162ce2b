"""Webhooks from the job to a real receiver: the messages that arrive, and how often."""

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
from app.webhooks import signature
from app.webhooks.delivery import AT_ONCE_PER_RECEIVER, MAX_ATTEMPTS, Delivery
from app.webhooks.sender import Sender
from app.webhooks.signature import owner_secret, secret_text
from tests.support.processes import ROOT, eventually
from tests.support.receiver import Receiver
from tests.support.webhooks import (
    OLD_SECRET,
    SECRET,
    Post,
    due_at,
    finished_job,
    make_due,
    nothing_is_due,
    wait_for_state,
    webhook_status,
)
from tests.support.worker import IdleWorker
from worker.jobs.keys import COUNTS, WEBHOOKS, job_key

PAGE = ROOT / "docs" / "how-to" / "receive-webhooks.md"


def verified_as_documented(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Verify a message by the code of docs/how-to/receive-webhooks.md."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return bool(names["verified"](secret, headers, body))


def test_a_finished_job_is_sent_signed_and_once(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    job = post(webhook=f"http://127.0.0.1:{hook.port}/hook?token=t0ken")
    assert job["webhook"] == {"state": "waiting", "attempts": 0, "said": None}
    assert nothing_is_due(redis)
    worker.start(job["id"])
    worker.publish(job["id"], [0])
    assert wait_for_state(api, job["id"], "delivered") == {
        "state": "delivered",
        "attempts": 1,
        "said": "answered 204",
    }
    (got,) = hook.received
    message, listed = json.loads(got.body), api.get("/v1/jobs").json()["jobs"][0]
    assert message == {"type": "job.finished", "timestamp": listed["finished_at"], "data": listed}
    assert (got.path, got.headers["content-type"]) == ("/hook?token=t0ken", "application/json")
    assert got.headers["webhook-id"] == f"job_{job['id']}"
    mine, bobs = (secret_text(owner_secret(SECRET, owner)) for owner in ("local", "bob"))
    assert verified_as_documented(mine, got.headers, got.body)
    before = secret_text(owner_secret(OLD_SECRET, "local"))
    assert verified_as_documented(before, got.headers, got.body), "while secrets are changed"
    assert not verified_as_documented(mine, got.headers, got.body + b" ")
    assert not verified_as_documented(bobs, got.headers, got.body)
    assert nothing_is_due(redis)


def test_a_webhook_carries_the_traceparent_of_the_post_and_no_other(
    api: httpx.Client, worker: IdleWorker, hook: Receiver
) -> None:
    sent = f"00-{'4b' * 16}-{'0f' * 8}-01"
    body = {"model": "tiny", "webhook": f"http://127.0.0.1:{hook.port}/"}
    ids = [
        api.post("/v1/jobs", json=body, headers=headers).json()["id"]
        for headers in ({"traceparent": sent}, {})
    ]
    for job in ids:
        worker.start(job)
        worker.publish(job, [0])
        wait_for_state(api, job, "delivered")
    carried = {json.loads(got.body)["data"]["id"]: got.headers for got in hook.received}
    assert carried[ids[0]]["traceparent"] == sent
    assert "traceparent" not in carried[ids[1]]


@pytest.mark.parametrize("count", [1, 70])
@pytest.mark.parametrize("priority", ["interactive", "bulk"])
def test_the_answer_to_a_post_is_what_the_status_says_next(
    api: httpx.Client, post: Post, hook: Receiver, count: int, priority: str
) -> None:
    webhook = f"http://127.0.0.1:{hook.port}/"
    for options in ({}, {"webhook": webhook}, {"sampler": "ddim", "eta": 0.5, "start": 3}):
        job = post(count=count, priority=priority, **options)
        assert api.get(job["links"]["self"]).json() == job


def test_a_failed_and_a_cancelled_job_are_sent_too(
    api: httpx.Client, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    failed, cancelled = (post(webhook=f"http://127.0.0.1:{hook.port}/")["id"] for _ in range(2))
    worker.fail(failed, "nan", "not a number")
    api.post(f"/v1/jobs/{cancelled}/cancel")
    wait_for_state(api, failed, "delivered")
    wait_for_state(api, cancelled, "delivered")
    messages = [json.loads(got.body) for got in hook.received]
    types = {message["data"]["id"]: message["type"] for message in messages}
    assert types == {failed: "job.failed", cancelled: "job.cancelled"}


def test_a_receiver_that_fails_is_asked_again_with_the_same_id_and_a_new_signature(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [503, 302, 200]
    began = time.time()
    job = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/")
    for attempt, said in ((1, "answered 503"), (2, "answered 302")):
        noted = {"state": "pending", "attempts": attempt, "said": said}
        eventually(lambda noted=noted: webhook_status(api, job) == noted, 60, said)
        assert due_at(redis, job) > began + 3.9, "not at once"
        began = time.time()
        make_due(redis, job)
    assert wait_for_state(api, job, "delivered")["attempts"] == 3
    requests = [(got.path, got.headers["webhook-id"]) for got in hook.received]
    assert requests == [("/", f"job_{job}")] * 3
    secret = secret_text(owner_secret(SECRET, "local"))
    assert all(verified_as_documented(secret, got.headers, got.body) for got in hook.received)


def test_a_webhook_is_given_up_after_the_last_attempt_or_at_once_after_410(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [500]
    first = post(webhook=f"http://127.0.0.1:{hook.port}/")["id"]
    redis.hset(job_key(first), "webhook_attempts", MAX_ATTEMPTS - 1)
    worker.fail(first, "nan", "not a number")
    assert wait_for_state(api, first, "given_up") == {
        "state": "given_up",
        "attempts": MAX_ATTEMPTS,
        "said": "answered 500",
    }
    hook.statuses = [410]
    second = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/")
    assert wait_for_state(api, second, "given_up")["attempts"] == 1
    assert nothing_is_due(redis)


def test_a_webhook_whose_last_attempt_never_ended_is_given_up_without_another(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    """Stands for a webhook that takes the process down each time."""
    job = post(webhook=f"http://127.0.0.1:{hook.port}/")["id"]
    redis.hset(job_key(job), "webhook_attempts", MAX_ATTEMPTS)
    worker.fail(job, "nan", "not a number")
    assert wait_for_state(api, job, "given_up")["said"] == "the last attempt did not come to an end"
    assert hook.received == []


@pytest.fixture
def api_process(
    with_webhooks: ApiSettings, tmp_path: Path
) -> Iterator[Callable[[], tuple[httpx.Client, subprocess.Popen[bytes]]]]:
    """Starts `ddpm api` in a process of its own, and gives a client of it and the process."""
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
            process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)
            stack.enter_context(process)
            stack.callback(process.kill)
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
            stack.enter_context(client)
            eventually(lambda: answers(client), 60, "the API answers")
            return client, process

        yield start


def answers(client: httpx.Client) -> bool:
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
    request = {"model": "tiny", "webhook": f"http://127.0.0.1:{hook.port}/"}
    job = first.post("/v1/jobs", json=request).json()["id"]
    began = time.time()
    worker.start(job)
    worker.publish(job, [0])
    eventually(lambda: hook.received, 60, "the receiver is asked")
    process.kill()
    process.wait()
    assert due_at(redis, job) >= began + 60, "no other process gets it for a while"
    assert all(redis.ttl(key) > 0 for key in redis.keys(f"{WEBHOOKS}*")), (
        "where no API ever comes, it goes by itself"
    )
    hook.held.set()
    second, _ = api_process()
    api_process()
    # The claim lapses.
    make_due(redis, job)
    assert wait_for_state(second, job, "delivered")["attempts"] == 2
    ids = [got.headers["webhook-id"] for got in hook.received]
    assert ids == [f"job_{job}"] * 2, "the two processes that are left send it once"


def test_an_owners_place_stays_taken_for_as_long_as_a_name_is_looked_up(
    api: httpx.Client,
    delivery: Delivery,
    sender: Sender,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One owner's names that hang must not take all threads. The outcome is noted in time."""
    delivery.at_once_per_owner = 1
    sender.timeout_s = 0.2
    found = threading.Event()
    getaddrinfo = socket.getaddrinfo

    def slow_getaddrinfo(host: str, *rest: Any, **more: Any) -> Any:
        if host == "tarpit.example":
            found.wait(60)
        return getaddrinfo("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow_getaddrinfo)
    stuck = finished_job(worker, post, "http://tarpit.example/")
    noted = "no answer in 0.2 s"
    eventually(lambda: webhook_status(api, stuck)["said"] == noted, 60, "the outcome is noted")
    sender.timeout_s = 60.0
    other = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/")
    bobs = job_of_another_owner(redis, worker, post, hook.port)
    eventually(lambda: is_delivered(redis, bobs), 60, "the other owner's is delivered")
    assert webhook_status(api, other)["attempts"] == 0, "it waits until a place is free"
    found.set()
    assert wait_for_state(api, other, "delivered")["attempts"] == 1


def job_of_another_owner(redis: Redis, worker: IdleWorker, post: Post, port: int) -> str:
    """Post a job, make it another owner's, and finish it; its id."""
    job = post(webhook=f"http://127.0.0.1:{port}/")["id"]
    redis.hset(job_key(job), "owner", "bob")
    worker.start(job)
    worker.publish(job, [0])
    return job


def is_delivered(redis: Redis, job: str) -> bool:
    return redis.hget(job_key(job), "webhook_state") == b"delivered"


def test_a_receiver_that_never_answers_delays_no_other_of_its_owner(
    api: httpx.Client, worker: IdleWorker, post: Post, hook: Receiver, another_hook: Receiver
) -> None:
    hook.held = threading.Event()
    stuck = [finished_job(worker, post, f"http://127.0.0.1:{hook.port}/") for _ in range(70)]
    eventually(lambda: len(hook.received) == AT_ONCE_PER_RECEIVER, 60, "the receiver has its share")
    other = finished_job(worker, post, f"http://127.0.0.1:{another_hook.port}/")
    wait_for_state(api, other, "delivered")
    assert len(hook.received) == AT_ONCE_PER_RECEIVER
    assert [webhook_status(api, job)["attempts"] for job in stuck].count(0) == 66
    hook.held.set()
    for job in stuck:
        assert wait_for_state(api, job, "delivered")["attempts"] == 1


def test_a_webhook_that_was_due_before_an_upgrade_is_sent(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    """Workers of an older version enter jobs in `ddpm:webhooks`, too, and know no lanes."""
    hook.statuses = [503, 204]
    job = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/")
    eventually(lambda: webhook_status(api, job)["said"], 60, "the first attempt is noted")
    redis.delete(*redis.keys(f"{WEBHOOKS}:*"))
    redis.zadd(WEBHOOKS, {job: time.time() - 1, "gone": 0})
    assert wait_for_state(api, job, "delivered")["attempts"] == 2
    assert nothing_is_due(redis)


def test_a_deleted_job_is_not_sent_and_leaves_nothing(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    hook.statuses = [503]
    job = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/")
    eventually(lambda: webhook_status(api, job)["said"], 60, "the first attempt is noted")
    assert api.delete(f"/v1/jobs/{job}").status_code == 204
    assert set(redis.keys("*")) <= {b"rq:queues", COUNTS.encode()}
    # As if a process had claimed it meanwhile.
    make_due(redis, job)
    eventually(lambda: nothing_is_due(redis), 60, "an entry without a job is dropped")
    assert len(hook.received) == 1


def test_a_bug_is_noted_and_counted_like_any_other_failure(
    api: httpx.Client,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    hook: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(signature, "owner_secret", lambda *_: 1 / 0)
        job = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/")
        eventually(lambda: webhook_status(api, job)["said"], 60, "the first attempt is noted")
    assert webhook_status(api, job) == {
        "state": "pending",
        "attempts": 1,
        "said": "the service failed to send it, which is a bug",
    }
    make_due(redis, job)
    assert wait_for_state(api, job, "delivered")["attempts"] == 2
