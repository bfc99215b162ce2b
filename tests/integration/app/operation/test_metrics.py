"""Metrics, as the parser of Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from tests.support.worker import IdleWorker
from worker.jobs.keys import LEFT, PACES, WORKERS, job_key

Sample = tuple[str, frozenset[tuple[str, str]]]


def scraped(api: httpx.Client) -> dict[Sample, float]:
    response = api.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in families
        for s in family.samples
    }


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def test_open_work_and_the_workers_speed_can_be_scraped(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    IdleWorker(redis).announce(image_steps_per_s=200)
    job = post(count=3, steps=50)
    post(count=1, steps=10, priority="bulk")
    metrics = scraped(api)
    assert metrics[sample("ddpm_open_jobs", priority="interactive")] == 1
    assert metrics[sample("ddpm_open_jobs", priority="bulk")] == 1
    assert metrics[sample("ddpm_open_image_steps")] == 160
    assert metrics[sample("ddpm_workers")] == 1
    rate = sample("ddpm_worker_image_steps_per_second", worker="worker-1", device="cpu")
    assert metrics[rate] == pytest.approx(200)
    step = sample(
        "ddpm_worker_step_seconds", worker="worker-1", model="tiny", precision="fp32", batch="1"
    )
    assert metrics[step] == pytest.approx(0.005)
    model = {"worker": "worker-1", "model": "tiny", "precision": "fp32"}
    assert metrics[sample("ddpm_worker_model_info", **model, fingerprint="a1b2c3d4e5f6")] == 1
    api.post(f"/v1/jobs/{job['id']}/cancel")
    assert scraped(api)[sample("ddpm_open_image_steps")] == 10


def test_an_unequal_fleet_is_seen_in_readiness_and_metrics(api: httpx.Client, redis: Redis):
    IdleWorker(redis).announce(fingerprint="aaa")
    IdleWorker(redis).announce(name="worker-2", fingerprint="bbb")
    ready = api.get("/readyz").json()["workers"]
    assert [worker["models"]["tiny"]["fingerprint"] for worker in ready] == ["aaa", "bbb"]
    labels = [dict(labels) for name, labels in scraped(api) if name == "ddpm_worker_model_info"]
    assert {(found["worker"], found["fingerprint"]) for found in labels} == {
        ("worker-1", "aaa"),
        ("worker-2", "bbb"),
    }


def test_all_metrics_are_zero_without_jobs_and_workers(api: httpx.Client, redis: Redis):
    of_processes = ("ddpm_api_", "ddpm_http_", "ddpm_redis_")
    found = scraped(api)
    assert {value for (name, _), value in found.items() if not name.startswith(of_processes)} == {
        0.0
    }
    assert found[sample("ddpm_api_processes")] == 1
    assert found[sample("ddpm_redis_memory_used_bytes")] > 0


def waiting(found: dict[Sample, float], unit: str, model: str = "tiny") -> float | None:
    return found.get(sample(f"ddpm_waiting_image_{unit}", model=model))


def test_waiting_work_of_a_model_is_given_in_seconds_of_one_worker(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    IdleWorker(redis).announce(image_steps_per_s=200)
    post(count=3, steps=50)
    post(count=1, steps=10, priority="bulk")
    found = scraped(api)
    assert waiting(found, "steps") == 160
    assert waiting(found, "seconds") == pytest.approx(0.8)
    assert waiting(found, "steps", "fashion-mnist-28") == 0
    assert waiting(found, "seconds", "fashion-mnist-28") == 0


def test_without_a_worker_the_seconds_are_those_of_the_last_known_pace(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    IdleWorker(redis).announce(image_steps_per_s=200)
    scraped(api)
    redis.delete(WORKERS)
    post(count=4, steps=50)
    assert waiting(scraped(api), "seconds") == pytest.approx(1)
    assert 0 < redis.ttl(PACES) <= 30 * 86_400


def test_a_pace_is_written_again_only_when_it_has_changed_by_more_than_a_tenth(
    api: httpx.Client, redis: Redis
):
    for rate, kept in ((200, 200), (190, 200), (150, 150)):
        IdleWorker(redis).announce(image_steps_per_s=rate)
        scraped(api)
        assert float(redis.hget(PACES, "tiny")) == pytest.approx(kept)


def test_a_job_that_waits_for_the_first_worker_ever_has_seconds_above_nought(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    post(count=1, steps=1)
    seconds = waiting(scraped(api), "seconds")
    assert seconds is not None
    assert seconds > 0


def test_of_a_model_that_nobody_has_any_more_only_image_steps_are_told(
    api: httpx.Client, redis: Redis
):
    redis.hset(LEFT, "job", "5 1 5 gone local")
    found = scraped(api)
    assert waiting(found, "steps", "gone") == 5
    assert waiting(found, "seconds", "gone") is None


def test_a_full_job_store_can_be_scraped(api: httpx.Client, redis: Redis):
    IdleWorker(redis).announce()
    redis.config_set("maxmemory", 1)
    try:
        assert scraped(api)[sample("ddpm_workers")] == 1
    finally:
        redis.config_set("maxmemory", 0)
    assert not redis.exists(PACES)


def test_ends_of_jobs_are_counted_by_reason_and_outlive_the_jobs(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Callable[..., dict[str, Any]]
):
    def ended(state: str, reason: str, priority: str) -> float:
        labels = {"state": state, "reason": reason, "priority": priority, "model": "tiny"}
        return scraped(api)[sample("ddpm_jobs_ended_total", **labels)]

    assert ended("failed", "not_finite", "bulk") == 0
    failed = post(count=1, priority="bulk")["id"]
    worker.start(failed)
    worker.fail(failed, "not_finite", "image 0")
    assert not worker.fail(failed, "not_finite", "image 0"), "it has failed already"
    cancelled = post(count=1)["id"]
    for _ in range(2):
        api.post(f"/v1/jobs/{cancelled}/cancel")
    finished = post(count=1)["id"]
    worker.start(finished)
    worker.publish(finished, [0])
    for job in (failed, cancelled, finished):
        api.delete(f"/v1/jobs/{job}")
    assert ended("failed", "not_finite", "bulk") == 1
    assert ended("cancelled", "-", "interactive") == 1
    assert ended("finished", "-", "interactive") == 1


def test_the_oldest_queued_job_is_one_that_no_worker_has_taken(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Callable[..., dict[str, Any]]
):
    oldest = sample("ddpm_oldest_queued_job_seconds", model="tiny", priority="interactive")
    assert oldest not in scraped(api)
    running, queued = post(count=70)["id"], post(count=1)["id"]
    worker.start(running)
    for job, age_s in ((running, 900), (queued, 60)):
        redis.hset(job_key(job), "created_at", time.time() - age_s)
    assert 60 <= scraped(api)[oldest] < 900
    api.post(f"/v1/jobs/{queued}/cancel")
    assert oldest not in scraped(api)


def test_open_work_is_given_by_owner(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    post(count=3, steps=50)
    assert scraped(api)[sample("ddpm_owner_open_image_steps", owner="local")] == 150
