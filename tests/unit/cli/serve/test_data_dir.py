from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.faults import Fault
from cli.serve import data_dir


def test_nobody_else_may_look_into_the_queue(tmp_path: Path) -> None:
    assert data_dir.valkey_folder(tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_second_holder_learns_who_the_first_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_dir, "_WAIT_S", 0.0)
    fd = data_dir.lock(tmp_path)
    with pytest.raises(Fault, match=f"pid {os.getpid()}"):
        data_dir.lock(tmp_path)
    os.close(fd)
    os.close(data_dir.lock(tmp_path))


def test_a_server_that_outlives_its_supervisor_keeps_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_dir, "_WAIT_S", 0.0)
    fd = data_dir.lock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(fd,)
    ) as server:
        os.close(fd)
        with pytest.raises(Fault):
            data_dir.lock(tmp_path)
        server.communicate(b"\n")
    os.close(data_dir.lock(tmp_path))


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fault, match="DDPM_DATA_DIR"):
        data_dir.valkey_folder(tmp_path / "file")
