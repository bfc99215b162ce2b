"""The OpenAPI document, as clients have been given it."""

from __future__ import annotations

import os

import pytest

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from tests.support.golden import assert_golden


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the service's settings from the environment."""
    for name in [name for name in os.environ if name.startswith("DDPM_")]:
        monkeypatch.delenv(name)


def test_the_document_without_keys_is_the_golden_one():
    assert_golden("openapi.json", create_app(ApiSettings()).openapi())


def test_the_document_with_keys_and_webhooks_is_the_golden_one():
    settings = ApiSettings(api_keys=new_key("ann")[1], webhook_secret="s" * 32)
    assert_golden("openapi-with-keys.json", create_app(settings).openapi())
