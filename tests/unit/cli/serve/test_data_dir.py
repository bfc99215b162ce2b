"""The folder of the job store, and its lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.faults import Fault
from cli.serve import data_dir


def test_the_queues_folder_is_closed_to_other_users(tmp_path: Path) -> None:
    assert data_dir.valkey_folder(tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_a_second_holder_is_refused_with_the_process_id_of_the_first(tmp_path: Path) -> None:
    fd = data_dir.lock(tmp_path)
    with pytest.raises(Fault, match=f"pid {os.getpid()}"):
        data_dir.lock(tmp_path, wait_s=0)
    os.close(fd)
    os.close(data_dir.lock(tmp_path))


def test_a_server_that_outlives_its_supervisor_keeps_the_folder(tmp_path: Path) -> None:
    fd = data_dir.lock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(fd,)
    ) as server:
        os.close(fd)
        with pytest.raises(Fault, match=rf"job store \(pid {server.pid}\).*`kill {server.pid}`"):
            data_dir.lock(tmp_path, wait_s=0)
        server.communicate(b"\n")
    os.close(data_dir.lock(tmp_path))


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fault, match="DDPM_DATA_DIR"):
        data_dir.valkey_folder(tmp_path / "file")
