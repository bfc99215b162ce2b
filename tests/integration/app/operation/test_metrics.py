"""Metrics, as the parser of Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from tests.support.worker import IdleWorker

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
    api.post(f"/v1/jobs/{job['id']}/cancel")
    assert scraped(api)[sample("ddpm_open_image_steps")] == 10


def test_all_metrics_are_zero_without_jobs_and_workers(api: httpx.Client, redis: Redis):
    assert set(scraped(api).values()) == {0.0}
