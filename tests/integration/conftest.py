"""The API on a real port before a real Valkey.

It has the card of one small model, and a worker that computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.settings import ApiSettings
from tests.support.server import create_fresh_app, serve
from tests.support.worker import IdleWorker
from worker.jobs.keys import PREVIEWS


@pytest.fixture(scope="session")
def settings(shared_valkey_url: str, models_dir: Path) -> ApiSettings:
    return ApiSettings(redis_url=shared_valkey_url, models_dir=models_dir)


@pytest.fixture(scope="session")
def url(settings: ApiSettings) -> Iterator[str]:
    with serve(create_fresh_app(settings)) as url:
        yield url


@pytest.fixture
def api(url: str, redis: Redis) -> Iterator[httpx.Client]:
    """A client of an API that knows no job."""
    with httpx.Client(base_url=url, timeout=10) as client:
        yield client


@pytest.fixture
def worker(redis: Redis) -> IdleWorker:
    return IdleWorker(redis)


@pytest.fixture
def post(api: httpx.Client) -> Callable[..., dict[str, Any]]:
    """`post(count=3, steps=10)`: the job that was accepted."""

    def post(**request: Any) -> dict[str, Any]:
        response = api.post("/v1/jobs", json={"model": "tiny"} | request)
        assert response.status_code == 202, response.text
        return response.json()

    return post


@pytest.fixture
def without_reconciliation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave jobs running whose shards nobody holds: `IdleWorker` has no leases."""
    monkeypatch.setattr("worker.jobs.reaper.RECONCILE_EVERY", 10**9)


@pytest.fixture
def asked(redis: Redis) -> Iterator[Callable[[], list[str]]]:
    """A call that returns the previews that workers have been asked for so far."""
    with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(PREVIEWS)
        subscription.get_message(timeout=5)
        requests: list[str] = []

        def asked() -> list[str]:
            """Read up to a message of our own: whatever was published before has arrived then."""
            redis.publish(PREVIEWS, "end")
            while (text := next_message()) != "end":
                requests.append(text)
            return requests

        def next_message() -> str:
            message = subscription.get_message(timeout=20)
            assert message is not None, "the server delivers no messages"
            return message["data"].decode()

        yield asked
