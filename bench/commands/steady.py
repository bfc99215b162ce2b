"""The load of a worker that does nothing, and whether its memory grows. Linux only.

`python -m bench.commands.steady` makes a thousand images as a warm-up, then ten thousand more in
jobs of every sampler. It measures the worker's resident memory in MiB at each thousand, then its
share of a core over 20 s without a job.
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
IMAGES = 1000
STEPS = 2
# Images of a job.
JOB = 250
IDLE_S = 20.0


def main(
    out: Out = OUT,
    thousands: Annotated[int, typer.Option(min=1, help="Thousands of images after the first")] = 10,
) -> None:
    """Measure a worker's memory over thousands of images, and its share of a core without any."""
    report = Report(out, "steady", "cpu")
    with data_folder(out) as folder, service(folder, DEFAULT, "cpu", "fp32") as client:
        worker = find_worker(folder)
        report.say("| images | resident MiB |\n|---|---|")
        for thousand in range(1 + thousands):
            make_a_thousand(client)
            report.say(f"| {(1 + thousand) * IMAGES} | {resident_mib(worker):.0f} |")
        report.say(f"\nIdle: {idle_share(worker):.2%} of a core over {IDLE_S:g} s.")


def make_a_thousand(client: ServiceClient) -> None:
    """Make IMAGES images, in jobs of every sampler at once."""
    options = [{"sampler": SAMPLERS[n % len(SAMPLERS)]} for n in range(IMAGES // JOB)]
    for job in [client.post(JOB, STEPS, **option) for option in options]:
        client.finished(job)


def find_worker(folder: Path) -> int:
    """Return the process id of the worker of the service in that folder."""
    mark = f"DDPM_DATA_DIR={folder}".encode()
    workers = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _is_worker(path, mark)
    ]
    # The other one, if any, is the process that starts it (cli/serve/die_with_parent.py).
    return max(workers, key=resident_mib)


def resident_mib(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def idle_share(process: int) -> float:
    """Return the share of a core that a process takes over IDLE_S seconds, after 2 s of rest."""
    time.sleep(2)
    before = _cpu_s(process)
    time.sleep(IDLE_S)
    return (_cpu_s(process) - before) / IDLE_S


def _is_worker(cmdline: Path, mark: bytes) -> bool:
    try:
        if not cmdline.read_bytes().endswith(b"\0worker\0"):
            return False
        return mark in (cmdline.parent / "environ").read_bytes().split(b"\0")
    except OSError:
        # It has ended, or is somebody else's.
        return False


def _cpu_s(process: int) -> float:
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    typer.run(main)
