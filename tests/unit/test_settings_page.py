"""The settings against docs/reference/settings.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from app.settings import ApiSettings
from cli.settings import CliSettings
from worker.settings import WorkerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
FIELDS = {
    f"DDPM_{name}".upper(): field
    for settings in (WorkerSettings, CliSettings, ApiSettings)
    for name, field in settings.model_fields.items()
}
# Variables of options of `ddpm sample`.
OF_A_COMMAND = {"DDPM_URL", "DDPM_KEY"}


def test_the_page_names_every_setting_and_no_other() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(FIELDS) | OF_A_COMMAND


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, field in FIELDS.items() if isinstance(field.default, int | float)],
)
def test_the_page_has_the_default_of_every_setting(name: str, field: FieldInfo) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    (row,) = [line for line in rows if f"`{name}`" in line.split("|")[1]]
    assert f"`{field.default}`" in row.split("|")[3]


@pytest.mark.parametrize("settings", [WorkerSettings, CliSettings, ApiSettings])
def test_an_empty_variable_is_the_same_as_an_unset_one(
    settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"DDPM_{name}".upper() for name in settings.model_fields]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    without = settings()
    for name in names:
        monkeypatch.setenv(name, "")
    assert settings() == without
