"""URLs of webhooks: which are refused, and that no log and no answer has them."""

from __future__ import annotations

import logging

import httpx
import pytest
from redis import Redis

from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.receiver import Receiver
from tests.support.webhooks import (
    Post,
    finished_job,
    make_due,
    wait_for_state,
    webhook_status,
)
from tests.support.worker import IdleWorker


def test_an_address_that_is_not_public_is_refused_at_once_or_when_its_name_is_known(
    api: httpx.Client, worker: IdleWorker, post: Post, hook: Receiver
) -> None:
    for url in (
        "http://127.0.0.2/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]:8000/",
        "http://[::ffff:127.0.0.1]/",
    ):
        refused = problem(api.post("/v1/jobs", json={"model": "tiny", "webhook": url}), 422)
        (error,) = refused["errors"]
        assert error["field"] == "webhook"
        assert "is not public; use one that is" in error["detail"]
    job = finished_job(worker, post, "http://name.invalid/")
    eventually(lambda: webhook_status(api, job)["said"], 60, "the attempt is noted")
    assert webhook_status(api, job)["said"] == "the host has no address that webhooks may go to"


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("https://user:secret@example.com/", "into its path or query"),
        ("http://2130706433/", "such as example.com or 192.0.2.7"),
        ("http://example.com:25/", "use one of those"),
        ("gopher://x", "send one such as https://example.com/hook"),
        ("", "send one such as https://example.com/hook"),
        ("http://example.com/ü", "send it percent-encoded"),
        ("http://" + "x" * 2000, "at most 2000 characters"),
    ],
)
def test_a_url_that_is_odd_is_refused_with_the_remedy(
    api: httpx.Client, url: str, remedy: str
) -> None:
    (error,) = problem(api.post("/v1/jobs", json={"model": "tiny", "webhook": url}), 422)["errors"]
    assert error["field"] == "webhook"
    assert remedy in error["detail"]


def test_a_service_without_a_secret_refuses_webhooks(url: str, redis: Redis) -> None:
    request = {"model": "tiny", "webhook": "https://example.com/"}
    refused = problem(httpx.post(f"{url}/v1/jobs", json=request), 422)
    remedy = "leave it out, or ask the operator for DDPM_WEBHOOK_SECRET"
    assert f"this service sends none; {remedy}" in refused["detail"]


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
    job = finished_job(worker, post, f"http://127.0.0.1:{hook.port}/t0ken")
    eventually(lambda: webhook_status(api, job)["said"], 60, "the first attempt is noted")
    api.post(f"/v1/jobs/{job}/cancel")
    answers = [
        api.get(f"/v1/jobs/{job}").text,
        api.get("/v1/jobs").text,
        hook.received[0].body.decode(),
    ]
    assert not [text for text in [*answers, caplog.text] if "t0ken" in text]
    hook.statuses = [410]
    make_due(redis, job)
    wait_for_state(api, job, "given_up")
    assert f"the webhook of job {job} is given up after 2 attempts: answered 410" in caplog.text
    assert "t0ken" not in caplog.text
