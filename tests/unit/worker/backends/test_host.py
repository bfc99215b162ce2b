from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.backends import host
from worker.backends.host import available_cores, description, memory_bytes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "_PHYSICAL_CORES", 8)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)],
)
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


def test_what_was_freed_is_used_again_instead_of_new_pages():
    found = subprocess.run(
        [sys.executable, "-c", FREE_AND_ASK_AGAIN], capture_output=True, text=True, check=True
    )
    given_back, kept = map(int, found.stdout.split())
    assert given_back > 10_000  # pages of 4 KiB, ten times 16 MiB of them
    assert kept < given_back / 5


FREE_AND_ASK_AGAIN = """
import resource, torch
from worker.machine import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(4 * 2**20)
        torch.zeros(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(new_pages())
keep_freed_memory()
print(new_pages())
"""
