"""What a stranger's connections cost: memory, and the time of everybody's /healthz.

`python -m bench.hostile` sends, for each kind of endless input, as fast as one connection
takes it, and opens another one whenever it is closed. Then it holds a thousand connections open,
each with half a request, against an API that may open 1,024 files. Linux only.
"""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Annotated

import typer

from app.access.api_keys import new_key
from bench.hostile.attackers import hold_half_requests, send_endlessly
from bench.hostile.endless import ENDLESS
from bench.lib.report import OUT, Out, Report
from bench.systems.api import Api, Meter, start_api

_FILES = 1024
# What app/http/capacity.py makes of so many files.
_FIT = 768
_PART_BYTES = 1 << 16
_PROBE_EVERY_S = 0.02


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Of each kind")] = 10,
    connections: Annotated[int, typer.Option(min=1, help="That are held open")] = 1000,
    keys: Annotated[
        bool, typer.Option(help="Whether the API asks for a key, which is not sent")
    ] = True,
    out: Out = OUT,
) -> None:
    """Measure MiB that the API grows by, and milliseconds of /healthz on new connections."""
    report = Report(out, "hostile", "cpu")
    settings = {"api_keys": new_key("ann")[1]} if keys else {}
    rows = []
    with start_api(out, max_connections=str(_FIT), **settings) as api:
        resource.prlimit(api.pid, resource.RLIMIT_NOFILE, (_FILES, _FILES))
        _probe(api, 1)
        rows.append(["nothing", *_measured(api, None, (), seconds)])
        for kind, (first, unit) in ENDLESS.items():
            whole = unit * (_PART_BYTES // len(unit))
            rows.append([kind, *_measured(api, send_endlessly, (first, whole), seconds)])
        held = _measured(api, hold_half_requests, (connections,), seconds)
        rows.append([f"{connections} connections with half a request", *held])
    report.table(["sent", "MiB more", "/healthz median, ms", "worst, ms"], rows)


def _measured(
    api: Api, attack: Callable[..., None] | None, arguments: Sequence[object], seconds: float
) -> list[str]:
    process = get_context("spawn").Process(target=attack, args=(api.port, *arguments), daemon=True)
    if attack:
        process.start()
        time.sleep(1)
    before = api.resident_mib()
    with Meter(api) as meter:
        times = _probe(api, seconds)
    if attack:
        process.kill()
        process.join()
    more = max(meter.resident_mib) - before
    return [f"{more:.1f}", f"{statistics.median(times):.1f}", f"{max(times):.1f}"]


def _probe(api: Api, seconds: float) -> list[float]:
    """Ask for /healthz, each time on a new connection; return milliseconds."""
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", api.port), 60) as probe:
            probe.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not probe.recv(4096).startswith(b"HTTP/1.1 200"):
                raise SystemExit("/healthz was not answered")
        times.append(1e3 * (time.perf_counter() - began))
        time.sleep(_PROBE_EVERY_S)
    return times


if __name__ == "__main__":
    typer.run(main)
