"""The OpenAPI document, as clients have been given it: docs/reference/openapi.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from tests.support.golden import assert_golden

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the service's settings from the environment."""
    for name in [name for name in os.environ if name.startswith("DDPM_")]:
        monkeypatch.delenv(name)


def test_the_document_is_the_committed_one() -> None:
    assert_golden("openapi.json", create_app(ApiSettings()).openapi(), REFERENCE)


def test_keys_webhooks_and_other_models_change_nothing_in_the_document(models_dir: Path) -> None:
    settings = ApiSettings(
        models_dir=models_dir, api_keys=new_key("ann")[1], webhook_secret="s" * 32
    )
    committed = json.loads((REFERENCE / "openapi.json").read_text(encoding="utf-8"))
    assert create_app(settings).openapi() == committed
