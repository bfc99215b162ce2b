"""The machine as a worker sees it: cores, memory, names and devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.networks.memory import is_out_of_memory
from worker.backends.host import (
    UnusableDevice,
    available_cores,
    choose_device,
    description,
    memory_bytes,
)
from worker.backends.memory import host_memory_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1)],
)
def test_a_containers_limit_on_cores_is_respected(tmp_path: Path, quota: str, cores: int):
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores(tmp_path, physical=8) == cores


def test_a_limit_above_the_machines_cores_is_no_limit(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("6400000 100000")
    assert available_cores(tmp_path, physical=8) == 8


def test_a_process_without_control_groups_has_the_whole_machine(tmp_path: Path):
    assert available_cores(tmp_path, physical=8) == 8
    assert memory_bytes(CPU, tmp_path) > 2**28


def test_a_containers_limit_on_memory_is_respected(tmp_path: Path):
    (tmp_path / "memory.max").write_text("268435456\n")
    assert memory_bytes(CPU, tmp_path) == 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(CPU, tmp_path) > 2**28


V2 = "0::/system.slice/ddpm.service\n"
V1 = "4:memory:/docker/a\n1:cpu,cpuacct:/docker/a\n0::/\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def own_groups(tmp_path: Path, text: str) -> Path:
    own = tmp_path / "own"
    own.write_text(text)
    return own


@pytest.mark.parametrize("group", ["system.slice", "system.slice/ddpm.service"])
def test_the_limits_of_a_systemd_unit_and_its_slice_are_respected(tmp_path: Path, group: str):
    own = own_groups(tmp_path, V2)
    write(tmp_path / "system.slice/ddpm.service", memory_max="max", cpu_max="max 100000")
    write(tmp_path / group, memory_max="268435456", cpu_max="300000 100000")
    assert host_memory_bytes(tmp_path, own) == 2**28
    assert available_cores(tmp_path, physical=8, own=own) == 3


@pytest.mark.parametrize("group", ["", "docker/a"], ids=["namespaced", "by path"])
def test_the_limits_of_version_1_are_respected(tmp_path: Path, group: str):
    own = own_groups(tmp_path, V1)
    for controller in ("memory", "cpu"):
        write(
            tmp_path / controller,
            memory_limit_in_bytes="9223372036854771712",
            cpu_cfs_quota_us="-1",
            cpu_cfs_period_us="100000",
        )
    write(tmp_path / "memory" / group, memory_limit_in_bytes="268435456")
    write(tmp_path / "cpu" / group, cpu_cfs_quota_us="250000", cpu_cfs_period_us="100000")
    assert host_memory_bytes(tmp_path, own) == 2**28
    assert available_cores(tmp_path, physical=8, own=own) == 3


def test_a_group_outside_the_namespace_is_passed_over(tmp_path: Path):
    own = own_groups(tmp_path, "0::/../other\n")
    write(tmp_path, memory_max="268435456")
    assert host_memory_bytes(tmp_path, own) == 2**28


def test_the_description_names_what_times_depend_on():
    assert description(CPU).endswith(f", {available_cores()} cores")
    assert torch.backends.cpu.get_cpu_capability() in description(CPU)


def test_a_device_is_chosen_by_its_name():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("gpu", "gpu is no device; use cpu, cuda, cuda:1 or auto"),
        ("mps", "mps is a device of PyTorch's that nothing here computes on; use cpu, cuda"),
        ("meta", "meta is a device of PyTorch's that nothing here computes on; use cpu, cuda"),
        ("hip", "hip is a device of PyTorch's that nothing here computes on; use cpu, cuda"),
        ("cuda:99", r"cuda:99 but torch sees \d+ CUDA devices; use cpu or auto"),
    ],
)
def test_a_device_that_cannot_be_used_is_named_with_the_remedy(asked: str, text: str):
    with pytest.raises(UnusableDevice, match=text) as refused:
        choose_device(asked)
    assert refused.value.reason, "PyTorch's words are lost"


def test_freed_memory_is_used_again_instead_of_new_pages():
    command = [sys.executable, "-c", FREE_AND_ASK_AGAIN]
    # At first glibc gives all of it back. Without a threshold it adapts to what it has seen.
    adapts_to_nothing = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env=adapts_to_nothing
    )
    given_back, kept = map(int, found.stdout.split())
    # pages of 4 KiB, ten times 16 MiB of them
    assert given_back > 10_000
    assert kept < given_back / 5


FREE_AND_ASK_AGAIN = """
import resource, torch
from worker.backends.host import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(4 * 2**20)
        torch.zeros(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(new_pages())
keep_freed_memory()
new_pages()  # what is to be kept comes from the system once
print(new_pages())
"""


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_an_error_is_told_from_a_lack_of_memory(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
