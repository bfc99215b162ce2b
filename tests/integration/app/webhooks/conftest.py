"""An API that sends webhooks, and a receiver of them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from app.webhooks.delivery import Delivery
from app.webhooks.sender import Sender
from app.webhooks.target import Reach
from tests.support.receiver import Receiver, receiver
from tests.support.server import serve
from tests.support.webhooks import OLD_SECRET, SECRET


@pytest.fixture
def with_webhooks(settings: ApiSettings) -> ApiSettings:
    """Settings of an API that may send webhooks to loopback."""
    webhooks = {"webhook_secret": SECRET, "webhook_networks": "127.0.0.1"}
    return ApiSettings(**settings.model_dump() | webhooks)


@pytest.fixture
def sender() -> Sender:
    """Sends to loopback."""
    return Sender(Reach([ip_network("127.0.0.1")]))


@pytest.fixture
def app(with_webhooks: ApiSettings, sender: Sender) -> FastAPI:
    """An API that looks often for webhooks that are due."""
    app = create_app(with_webhooks)
    app.state.delivery = Delivery(app.state.redis, sender, [SECRET, OLD_SECRET], poll_every_s=0.02)
    return app


@pytest.fixture
def delivery(app: FastAPI) -> Delivery:
    """The API's delivery."""
    return app.state.delivery


@pytest.fixture
def api(app: FastAPI, redis: Redis) -> Iterator[httpx.Client]:
    """A client of the API."""
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """A receiver that answers 204."""
    with receiver() as running:
        yield running


@pytest.fixture
def another_hook() -> Iterator[Receiver]:
    """Another receiver that answers 204."""
    with receiver() as running:
        yield running
