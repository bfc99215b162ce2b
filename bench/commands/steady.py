"""What a worker takes when it does nothing, and whether its memory grows: `python -m bench.commands.steady`. Linux only.

After a thousand images as a warm-up, ten thousand more in jobs of every sampler: the worker's resident memory at each thousand.
Then its share of a core over 20 s without a job.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.lib.model import DEFAULT
from bench.lib.report import OUT, Out, Report
from bench.systems.service import ServiceClient, data_folder, service

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")
IMAGES, STEPS, JOB = 1000, 2, 250
IDLE_S = 20.0


def main(
    out: Out = OUT,
    thousands: Annotated[int, typer.Option(min=1, help="Thousands of images after the first")] = 10,
) -> None:
    """A worker's memory over thousands of images, and its share of a core when it has none."""
    report = Report(out, "steady", "cpu")
    with data_folder(out) as folder, service(folder, DEFAULT, "cpu", "fp32") as client:
        worker = worker_of(folder)
        report.say("| images | resident MiB |\n|---|---|")
        for thousand in range(1 + thousands):
            make_a_thousand(client)
            report.say(f"| {(1 + thousand) * IMAGES} | {resident_mib(worker):.0f} |")
        report.say(f"\nIdle: {idle_share(worker):.2%} of a core over {IDLE_S:g} s.")


def make_a_thousand(client: ServiceClient) -> None:
    options = [{"sampler": SAMPLERS[n % len(SAMPLERS)]} for n in range(IMAGES // JOB)]
    for job in [client.post(JOB, STEPS, **option) for option in options]:
        client.finished(job)


def worker_of(folder: Path) -> int:
    """The process id of the worker of the service in that folder."""
    mark = f"DDPM_DATA_DIR={folder}".encode()
    workers = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _is_worker(path, mark)
    ]
    return max(workers, key=resident_mib)  # the other one, if any, is its leash


def resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def idle_share(process: int) -> float:
    time.sleep(2)
    before = _cpu_s(process)
    time.sleep(IDLE_S)
    return (_cpu_s(process) - before) / IDLE_S


def _is_worker(cmdline: Path, mark: bytes) -> bool:
    try:
        return cmdline.read_bytes().endswith(b"\0worker\0") and mark in (
            cmdline.parent / "environ"
        ).read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return False


def _cpu_s(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    typer.run(main)
