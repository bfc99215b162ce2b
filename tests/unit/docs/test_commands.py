"""Every shell command that the documentation shows is one that exists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.routing import BaseRoute, Match
from typer.main import get_command

from app.main import create_app
from app.settings import ApiSettings
from cli.main import app as ddpm
from tests.support.pages import ROOT, commands, pages

_HERE = {"127.0.0.1", "localhost", ""}
_COMPOSE_SERVICES = {"api", "worker"}


def _shown() -> list[tuple[Path, list[str]]]:
    """Decisions and the changelog tell of the past, and are left out."""
    now = [
        page for page in pages() if page.name != "CHANGELOG.md" and "decisions" not in page.parts
    ]
    return [(page, words) for page in now for words in commands((ROOT / page).read_text())]


@pytest.mark.parametrize(
    ("page", "words"),
    [pytest.param(page, words, id=f"{page}: {' '.join(words)[:60]}") for page, words in _shown()],
)
def test_a_command_that_a_page_shows_exists(page: Path, words: list[str]) -> None:
    assert fault(words) is None


def fault(words: Sequence[str]) -> str | None:
    """Say what of a command does not exist; None where all does, or where it is none of ours."""
    match [Path(words[0]).name, *words[1:]]:
        case ["make", *arguments]:
            return _unknown_target(arguments)
        case ["ddpm", *arguments]:
            return _unparsed(arguments)
        case ["python" | "python3", "-m", "cli", *arguments]:
            return _unparsed(arguments)
        case ["python" | "python3", "-m", module, *_]:
            return None if _is_importable(module) else f"there is no module {module}"
        case ["curl", *arguments]:
            return _unknown_path(arguments)
        case ["docker", "compose", *arguments] | ["docker-compose", *arguments]:
            return _not_of_compose(arguments)
    return None


def _unknown_target(arguments: Sequence[str]) -> str | None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    unknown = [
        word
        for word in arguments
        if not word.startswith("-") and "=" not in word and word not in targets
    ]
    return f"the Makefile has no {', '.join(unknown)}" if unknown else None


def _unparsed(arguments: Sequence[str]) -> str | None:
    command: Any = get_command(ddpm)
    words = list(arguments)
    while words and (below := getattr(command, "commands", {}).get(words[0])):
        command = below
        del words[0]
    if "--help" in words:
        return None
    if hasattr(command, "commands") and words:
        return f"ddpm has no command {' '.join(arguments)}"
    try:
        command.make_context("ddpm", words)
    except Exception as error:  # Typer's own, whatever its version calls them
        return f"ddpm does not take {' '.join(arguments)}: {getattr(error, 'message', error)}"
    return None


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _unknown_path(arguments: Sequence[str]) -> str | None:
    method = _method(arguments)
    for word in arguments:
        url = re.fullmatch(r"(https?://[^/]+|0)(/.*)?", word)
        if not url:
            continue
        host, path = urlsplit(url[1]).hostname or "", urlsplit(url[2] or "/").path
        if (host in _HERE or path.startswith("/v1")) and not _is_answered(method, path):
            return f"the API has no {method} {path}"
    return None


def _method(arguments: Sequence[str]) -> str:
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--request" or re.fullmatch("-[a-zA-Z]*X", word):
            return value
    return (
        "POST" if any(re.match("-[a-zA-Z]*d$|--data|--json", word) for word in arguments) else "GET"
    )


def _is_answered(method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in _routes())


@cache
def _routes() -> list[BaseRoute]:
    return list(create_app(ApiSettings()).routes)


def _not_of_compose(arguments: Sequence[str]) -> str | None:
    files = [name for flag, name in pairwise(arguments) if flag in ("-f", "--file")]
    absent = [name for name in files if not (ROOT / name).is_file()]
    if absent:
        return f"there is no {', '.join(absent)}"
    service = next((i for i, word in enumerate(arguments) if word in _COMPOSE_SERVICES), None)
    if "run" in arguments and service is not None and (words := arguments[service + 1 :]):
        return _unparsed(words)
    return None


@pytest.mark.parametrize(
    "command",
    [
        "make serve PORT=8001",
        ".venv/bin/ddpm sample --seed 7",
        "DDPM_KEY=x ddpm sample --url http://gpu-box:8000 --count 16",
        "ddpm models",
        "python -m json.tool --help",
        "curl -s http://127.0.0.1:8000/v1/jobs -H 'Content-Type: application/json' "
        "-d '{\"seed\": 7}'",
        "curl -sX POST $url/v1/jobs/$id/cancel",
        'curl "http://localhost:8000/v1/jobs/$id/images/$i/preview?x=1" > a.png',
        "curl http://127.0.0.1:8000",
        "curl https://example.com/elsewhere",
        "docker compose -f docker-compose.cpu.yml up",
        "docker compose run --rm --no-deps api keys new NAME",
        "for i in 1 2; do make test; done",
    ],
)
def test_commands_that_exist_are_let_through(command: str) -> None:
    assert [fault(words) for words in commands(f"```sh\n{command}\n```")].count(None) >= 1
    assert {fault(words) for words in commands(f"```sh\n{command}\n```")} == {None}


@pytest.mark.parametrize(
    "command",
    [
        "make sreve",
        "cd x && make sreve",
        "ddpm sample --sead 7",
        "ddpm smaple",
        "ddpm train recipe.toml --outt run",
        "id=$(ddpm smaple)",
        "python -m bench.nothing_of_the_kind",
        "curl http://127.0.0.1:8000/v2/jobs",
        "base=http://127.0.0.1:8000/v1/job; curl -N $base/$id/events",
        "curl -X DELETE http://127.0.0.1:8000/v1/models",
        "curl http://gpu-box:8000/v1/pictures",
        "docker compose -f docker-compose.tpu.yml up",
        "docker compose run --rm api keys old NAME",
    ],
)
def test_commands_that_do_not_exist_are_found(command: str) -> None:
    assert [text for words in commands(f"```sh\n{command}\n```") if (text := fault(words))]


def test_of_a_console_block_only_what_is_typed_is_a_command() -> None:
    console = "```console\n$ make \\\n  serve\nmake sreve\n$ ddpm models  # lists them\n```\n"
    text = f"{console}```text\nmake sreve\n```\n"
    assert commands(text) == [["make", "serve"], ["ddpm", "models"]]
