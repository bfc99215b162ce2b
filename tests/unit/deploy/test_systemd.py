"""The units of deploy/systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.settings import ApiSettings
from tests.support.processes import ROOT
from worker.settings import WorkerSettings

UNITS = ROOT / "deploy" / "systemd"
COMMAND = "/opt/ddpm/.venv/bin/ddpm"


def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    names = []
    for unit in UNITS.iterdir():
        # It looks for the command too, which is installed nowhere here.
        name = unit.name.replace("@", "@0")
        (tmp_path / name).write_text(unit.read_text().replace(COMMAND, "/bin/true"))
        names.append(f"./{name}")
    run = subprocess.run(
        [analyze, "verify", "--man=no", *names], cwd=tmp_path, capture_output=True, text=True
    )
    ours = [line for line in run.stderr.splitlines() if "ddpm" in line]
    assert (run.returncode, ours) == (0, [])


def test_every_setting_in_the_units_exists() -> None:
    known = {
        f"DDPM_{name}".upper()
        for settings in (ApiSettings, WorkerSettings)
        for name in settings.model_fields
    }
    for unit in UNITS.iterdir():
        assert set(re.findall(r"DDPM_[A-Z_]+", unit.read_text())) <= known, unit.name


def test_the_unit_of_the_api_listens_where_the_page_on_proxies_says() -> None:
    page = (ROOT / "docs" / "how-to" / "run-behind-a-proxy.md").read_text()
    (path,) = re.findall(r"ListenStream=(\S+)", (UNITS / "ddpm-api.socket").read_text())
    assert f"server unix:{path};" in page
    assert f"reverse_proxy unix/{path}" in page
