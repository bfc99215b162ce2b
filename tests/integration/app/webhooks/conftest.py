"""An API that sends webhooks, and a receiver of them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from app.webhooks import delivery
from tests.support.receiver import Receiver, receiver
from tests.support.server import serve
from tests.support.webhooks import SECRET


@pytest.fixture
def with_webhooks(settings: ApiSettings) -> ApiSettings:
    return ApiSettings(
        **settings.model_dump() | {"webhook_secret": SECRET, "webhook_networks": "127.0.0.1"}
    )


@pytest.fixture
def api(
    with_webhooks: ApiSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[httpx.Client]:
    monkeypatch.setattr(delivery, "_LOOK_EVERY_S", 0.02)
    with serve(create_app(with_webhooks)) as url, httpx.Client(base_url=url, timeout=10) as client:
        yield client


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running
