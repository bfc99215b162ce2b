"""Results stores that the API cannot read: one that hangs, and one that it does not know."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.s3 import BUCKET, s3_server
from tests.support.server import serve
from tests.support.worker import IdleWorker
from worker.jobs.keys import EXPIRING
from worker.results.object_store import ObjectStore


def unreachable(response: httpx.Response) -> bool:
    return (response.status_code, response.json()["type"]) == (
        503,
        "urn:problem-type:ddpm:results-unreachable",
    ) and int(response.headers["retry-after"]) > 0


def test_a_store_that_hangs_is_a_503_within_5_s_to_all_who_ask_at_once(
    redis: Redis, shared_valkey_url: str, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, s3_server():
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        settings = ApiSettings(
            redis_url=shared_valkey_url, models_dir=models_dir, results_url=f"s3://{BUCKET}"
        )
        with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as http:
            job = http.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
            worker = IdleWorker(redis, _Pretends())
            worker.start(job)
            worker.publish(job, [0])
            with ThreadPoolExecutor(10) as threads:
                for rest in ("images/0", "grid", "archive"):
                    began = time.monotonic()
                    answers = threads.map(http.get, [f"/v1/jobs/{job}/{rest}"] * 10)
                    assert all(unreachable(answer) for answer in answers)
                    assert time.monotonic() - began < 5
            assert http.delete(f"/v1/jobs/{job}").status_code == 204
            assert redis.zscore(EXPIRING, job) == pytest.approx(time.time() + 60, abs=10), (
                "left to the workers"
            )


class _Pretends(ObjectStore):
    """Answers as if it had stored what it was given."""

    def __init__(self) -> None: ...

    def put(self, job: str, images: Any) -> list[bytes]:
        return [b""] * len(images)


def test_an_api_without_the_results_store_of_its_workers_says_so(
    redis: Redis, shared_valkey_url: str, models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(create_app(ApiSettings(redis_url=shared_valkey_url, models_dir=models_dir))) as url:
        job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
        worker = IdleWorker(redis, _Pretends())
        worker.start(job)
        worker.publish(job, [0])
        assert unreachable(httpx.get(f"{url}/v1/jobs/{job}/images/0"))
    assert "set its DDPM_RESULTS_URL" in caplog.text
