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


def test_a_content_has_no_word_that_openapi_3_1_does_not_know() -> None:
    """openapi-generator refuses a document that has one."""
    document = json.loads((REFERENCE / "openapi.json").read_text(encoding="utf-8"))
    assert document["openapi"].startswith("3.1")
    contents = [
        content
        for operations in document["paths"].values()
        for operation in operations.values()
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
    ]
    assert {word for content in contents for word in content} == {"schema"}
