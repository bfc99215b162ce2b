"""The `ddpm` command itself: its help, and settings that are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


def test_help_comes_at_once_because_it_loads_nothing_heavy() -> None:
    program = (
        "import sys; from cli.main import app; app(['--help'], standalone_mode=False); "
        "print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules = done.stdout.splitlines()[-1]
    for heavy in ("torch", "httpx", "redis", "fastapi", "pydantic"):
        assert f"'{heavy}'" not in modules


def test_a_wrong_setting_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_PORT", "eighty")
    result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "DDPM_PORT='eighty'" in result.stderr


@pytest.mark.parametrize("command", ["api", "up", "worker"])
@pytest.mark.parametrize(
    ("url", "shown", "expected"),
    [
        ("valkey://:hunter2@store:6379/0", "valkey://", "rediss"),
        (":hunter2@store://", "", "none of redis, rediss"),
        *[(f"redis://:hunter2{odd}hunter2@store:6379/0", "redis://", "no URL") for odd in "/#?"],
        *[
            (f"redis+sentinel://:hunter2{odd}hunter2@store/main", "redis+sentinel://", "/SERVICE")
            for odd in "/#?"
        ],
        ("rediss+sentinel://:hunter2@a,b", "rediss+sentinel://", "names no service"),
    ],
)
def test_a_wrong_url_is_named_without_the_password_in_it(
    monkeypatch: pytest.MonkeyPatch, command: str, url: str, shown: str, expected: str
) -> None:
    monkeypatch.setenv("DDPM_REDIS_URL", url)
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert f"DDPM_REDIS_URL={shown}***: " in result.stderr
    assert expected in result.stderr, "what it should be"
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("command", ["api", "up"])
def test_a_broken_card_is_reported_in_one_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("DDPM_MODELS_DIR", str(tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert str(tmp_path / "broken" / "card.json") in result.stderr


@pytest.mark.parametrize("command", ["api", "worker"])
def test_help_says_where_the_queue_is_by_default(command: str) -> None:
    assert "redis://127.0.0.1:6379/0" in CliRunner().invoke(app, [command, "--help"]).output
