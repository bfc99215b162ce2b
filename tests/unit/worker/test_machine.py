from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker import machine
from worker.machine import available_cores, description, memory_bytes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_PHYSICAL_CORES", 8)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)])
def test_a_containers_limit_on_cores_is_heeded(tmp_path: Path, quota: str, cores: int):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores(tmp_path) == cores


def test_a_limit_above_the_machine_is_none(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("6400000 100000")
    assert available_cores(tmp_path) == 8


def test_where_there_are_no_control_groups_the_machine_is_all_ours(tmp_path: Path):
    assert available_cores(tmp_path) == 8
    assert memory_bytes(CPU, tmp_path) > 2**28


def test_a_containers_limit_on_memory_is_heeded(tmp_path: Path):
    (tmp_path / "memory.max").write_text("268435456\n")
    assert memory_bytes(CPU, tmp_path) == 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(CPU, tmp_path) > 2**28


def test_the_description_names_what_times_depend_on():
    assert description(CPU).endswith(", 8 cores")
    assert torch.backends.cpu.get_cpu_capability() in description(CPU)
