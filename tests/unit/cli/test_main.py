from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cli.main import app


def test_help_is_there_at_once_because_it_loads_nothing_heavy() -> None:
    program = "import sys; from cli.main import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    for heavy in ("torch", "httpx", "redis", "fastapi", "pydantic"):
        assert f"'{heavy}'" not in modules


def test_a_wrong_setting_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_PORT", "eighty")
    result = CliRunner().invoke(app, ["up"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "DDPM_PORT='eighty'" in result.stderr
