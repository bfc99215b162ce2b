"""Fuzzes the wire of a real API: `python -m bench.fuzz --minutes 60 --seed 1`.

Two API processes are fuzzed in turn, each with a Valkey of its own: one as a user starts it, and
one with keys, trusted proxies, other origins and webhooks. It prints what it finds, with the bytes
that show it, and ends with 1 if there is anything. Linux only.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import typer
from redis import Redis

from app.access.api_keys import new_key
from bench.fuzz.client import FuzzTally, send_all
from bench.fuzz.corpus import Header
from bench.fuzz.mutations import make_case
from bench.fuzz.service import HealthProbe, JobsOfEveryKind, bugs_in
from bench.lib.report import OUT, Out, Report
from bench.systems.api import Api, start_api

# More than the API gives a request to arrive, and to be read afterwards.
_PATIENCE_S = 30.0
_ROUND_S = 20.0
# After the first round: what it allocates once is no growth.
_MOST_MORE_MIB = 64.0
_LONGEST_MS = 5000.0


@dataclass
class FuzzedApi:
    """An API that is fuzzed, and what has come of it."""

    name: str
    api: Api
    jobs: JobsOfEveryKind
    headers: tuple[Header, ...] = ()
    tally: FuzzTally = field(default_factory=FuzzTally)
    resident_mib: list[float] = field(default_factory=list)
    worst_ms: float = 0.0
    faults: list[str] = field(default_factory=list)

    def fuzz(self, seed: int, numbers: Iterator[int]) -> None:
        """Send the cases of one round, and look at the API meanwhile and afterwards."""
        self.jobs.renew()
        make = partial(make_case, seed, jobs=self.jobs.ids, headers=self.headers)
        with HealthProbe(self.api.url) as probe:
            asyncio.run(send_all(self.api.port, make, numbers, self.tally, patience_s=_PATIENCE_S))
        self.worst_ms = max(self.worst_ms, *probe.times_ms)
        self.faults += probe.refused
        self.resident_mib.append(self.api.resident_mib())

    def all_faults(self) -> list[str]:
        """Return all that is wrong with the API."""
        found = [*map(str, self.tally.findings), *self.faults]
        found += bugs_in(self.api.log.read_text(errors="replace"))
        if self.resident_mib[-1] - self.resident_mib[0] > _MOST_MORE_MIB:
            found.append(f"memory grew, in MiB: {[round(mib) for mib in self.resident_mib]}")
        if self.worst_ms > _LONGEST_MS:
            found.append(f"/healthz was answered after {self.worst_ms:.0f} ms")
        return found


def main(
    minutes: Annotated[float, typer.Option(min=0, help="How long, about")] = 1,
    seed: Annotated[int, typer.Option(help="Of the cases")] = 1,
    only: Annotated[
        list[int] | None, typer.Option(help="Number of a case to send, and no other; repeatable")
    ] = None,
    out: Out = OUT,
) -> None:
    """Send mutated requests and check every answer."""
    report = Report(out, "fuzz", "cpu")
    numbers = itertools.count()
    until = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        targets = [_start(stack, out, "plain"), _start_guarded(stack, out)]
        for turn, target in enumerate(itertools.cycle(targets)):
            target.fuzz(seed, iter(only) if only else _until(numbers, _ROUND_S))
            report.progress(f"{sum(target.tally.cases for target in targets)} cases")
            if turn % 2 and (only or time.monotonic() > until):
                break
        for target in targets:
            shutil.copy(target.api.log, out / f"fuzz-{target.name}.log")
        found = [f"{target.name}: {fault}" for target in targets for fault in target.all_faults()]
        report.table(
            ["API", "cases", "answers", "not answered", "MiB more", "/healthz worst, ms"],
            [_row(target) for target in targets],
        )
    for target in targets:
        report.say(f"{target.name}: {dict(sorted(target.tally.statuses.items()))}")
    for fault in found:
        report.say(fault)
    raise SystemExit(bool(found))


def _until(numbers: Iterator[int], seconds: float) -> Iterator[int]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield next(numbers)


def _row(target: FuzzedApi) -> list[str]:
    tally, resident = target.tally, target.resident_mib
    return [
        target.name,
        str(tally.cases),
        str(tally.statuses.total()),
        str(tally.silent),
        f"{resident[-1] - resident[0]:.1f}",
        f"{target.worst_ms:.0f}",
    ]


def _start(stack: ExitStack, out: Path, name: str, key: str = "", **settings: str) -> FuzzedApi:
    api = stack.enter_context(start_api(out, **settings))
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    http = stack.enter_context(httpx.Client(base_url=api.url, headers=bearer, trust_env=False))
    redis = stack.enter_context(Redis.from_url(api.redis_url))
    headers = tuple((header.encode(), value.encode()) for header, value in bearer.items())
    return FuzzedApi(name, api, JobsOfEveryKind(http, redis), headers)


def _start_guarded(stack: ExitStack, out: Path) -> FuzzedApi:
    """Start an API with all that reads more of a request than it does by default."""
    key, entry = new_key("ann")
    return _start(
        stack,
        out,
        "guarded",
        key,
        api_keys=entry,
        key_requests_per_s="0",
        trusted_proxies="127.0.0.1",
        cors_origins="https://app.example.com",
        root_path="/ddpm",
        webhook_secret="s" * 32,
        anonymous_hosts="pictures.example",
    )


if __name__ == "__main__":
    typer.run(main)
