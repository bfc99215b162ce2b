"""What operators write down: settings, commands and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from app.settings import ApiSettings
from cli.main import app
from cli.settings import CliSettings
from tests.support.golden import assert_golden
from worker.settings import WorkerSettings

SETTINGS = {"api": ApiSettings, "cli": CliSettings, "worker": WorkerSettings}
OF_TEXT = ("description", "title")  # docs/settings.md has those
NAMES, KIND = ("name", "opts", "secondary_opts", "envvar"), ("param_type_name", "multiple", "nargs")
OF_A_PARAMETER = (*NAMES, *KIND, "required")


def described(settings: Any) -> dict[str, Any]:
    """Return what JSON Schema says of type, default and bounds, by environment variable."""
    prefix = settings.model_config["env_prefix"]
    fields = settings.model_json_schema()["properties"]
    return {f"{prefix}{name}".upper(): without_text(schema) for name, schema in fields.items()}


def without_text(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in OF_TEXT}


def commands(command: Any, path: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each command by its words, with its arguments and options by name."""
    yield path, [parameter(found) for found in sorted(command.params, key=lambda found: found.name)]
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}")


def parameter(of: Any) -> dict[str, Any]:
    default = of.default if of.default is None else str(of.default)
    return {name: getattr(of, name, None) for name in OF_A_PARAMETER} | {"default": default}


def test_the_settings_of_every_process_are_the_golden_ones():
    by_process = {name: described(settings) for name, settings in SETTINGS.items()}
    assert_golden("settings.json", by_process)


def test_the_commands_and_their_options_are_the_golden_ones():
    assert_golden("commands.json", dict(commands(typer.main.get_command(app), "ddpm")))
