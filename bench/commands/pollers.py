"""What 1,000 pollers and 200 event streams cost one API process: `python -m bench.commands.pollers`.

The API, a Valkey, workers that compute nothing and the clients are processes of their own. Every poller has a job of its own and
asks for it once a second. Exits with 1 where a request failed, a stream missed the end of its job, or a status was too slow.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import httpx
import typer
import uvloop

from bench.lib.report import OUT, Out, Report
from bench.load.crowd import Tally, crowd
from bench.load.pretence import STEPS, Pretence, PretendJob, Reports
from bench.systems.api import Api, Meter, api_apart

COUNTS = [1] * 10 + [16] * 5 + [64] * 4 + [1024]  # images of a job, over and over
P99_MS = 250
IDLE_S = 5.0
NO_BOUND = str(10**12)
HEAD = [
    "",
    "requests",
    "errors",
    "events",
    "p50",
    "p95",
    "p99",
    "sent late, p99",
    "CPU",
    "CPU a request",
    "resident memory",
]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What the clients saw, and what it cost the API meanwhile."""

    what: str
    tally: Tally
    meter: Meter
    answered: bool  # whether it should be: nobody asks while it is idle, and `?wait=` waits on

    @property
    def latencies_s(self) -> list[float]:
        """What was not answered by the end took so long at least."""
        return self.tally.latencies_s + (self.tally.unanswered_s if self.answered else [])

    def cells(self) -> list[str]:
        tally, meter, requests = self.tally, self.meter, len(self.tally.latencies_s)
        memory = [
            meter.resident_mib[0],
            meter.resident_mib[len(meter.resident_mib) // 2],
            meter.resident_mib[-1],
        ]
        return [
            self.what,
            *map(str, (requests, len(tally.errors), tally.events)),
            *(shown_ms(self.latencies_s, percent) for percent in (50, 95, 99)),
            shown_ms(tally.late_s, 99),
            f"{meter.cpu_s / meter.wall_s:.1%}",
            f"{1e3 * meter.cpu_s / requests:.2f} ms" if requests else "",
            " → ".join(f"{mib:.0f}" for mib in memory) + " MiB",
        ]


def shown_ms(seconds: Sequence[float], percent: int) -> str:
    return f"{percentile_ms(seconds, percent):.0f} ms" if seconds else ""


def percentile_ms(seconds: Sequence[float], percent: int) -> float:
    return 1e3 * statistics.quantiles(seconds, n=100)[percent - 1]


def main(
    pollers: Annotated[
        int, typer.Option(min=100, help="Clients that ask for a status every second, of a job each")
    ] = 1000,
    streams: Annotated[int, typer.Option(min=1, help="Event streams, each of a running job")] = 200,
    seconds: Annotated[float, typer.Option(min=2, help="How long they do it")] = 60,
    out: Out = OUT,
) -> None:
    """Poll, then poll and stream, then wait with `?wait=`, and see what it costs."""
    report = Report(out, "pollers", "cpu")
    with api_apart(
        out, max_open_image_steps=NO_BOUND, max_open_image_steps_per_key=NO_BOUND
    ) as api:
        stretches = list(measure(api, pollers, streams, seconds))
    report.table(HEAD, [stretch.cells() for stretch in stretches])
    for error, times in Counter(
        error for stretch in stretches for error in stretch.tally.errors
    ).most_common(10):
        report.say(f"{times} times: {error}")
    raise typer.Exit(int(not all(map(good, stretches))))


def measure(api: Api, pollers: int, streams: int, seconds: float) -> Iterator[Stretch]:
    yield stretch("idle", api, [], [], IDLE_S)
    jobs = post(api, pollers)
    running, queued, finished = (
        jobs[:streams],
        jobs[streams : (streams + pollers) // 2],
        jobs[(streams + pollers) // 2 :],
    )
    pretence = Pretence(api.redis_url)
    pretence.start(running + finished)
    pretence.finish(finished)
    status, events = (
        [f"/v1/jobs/{job.id}" for job in jobs],
        [f"/v1/jobs/{job.id}/events" for job in running],
    )
    waits = [f"/v1/jobs/{queued[n % len(queued)].id}?wait=60" for n in range(pollers)]
    with Reports(api.redis_url, running):
        yield stretch(f"{pollers} pollers", api, status, [], seconds / 3)
        yield stretch(f"{streams} streams", api, [], events, seconds / 3)
        both = f"{pollers} pollers, {streams} streams", api, status, events, seconds
        yield stretch(*both, end=lambda: pretence.finish(running))
    yield stretch(f"{pollers} wait", api, waits, [], seconds / 3, answered=False)
    yield stretch("idle", api, [], [], IDLE_S)


def stretch(
    what: str,
    api: Api,
    polled: Sequence[str],
    streamed: Sequence[str],
    seconds: float,
    end: Callable[[], object] | None = None,
    answered: bool = True,
) -> Stretch:
    with Meter(api) as meter:
        tally = uvloop.run(crowd(api.port, polled, streamed, seconds, end))
    return Stretch(what, tally, meter, answered and bool(polled or streamed))


def post(api: Api, number: int) -> list[PretendJob]:
    with httpx.Client(base_url=api.url, timeout=30) as http:
        return [_post(http, COUNTS[n % len(COUNTS)]) for n in range(number)]


def _post(http: httpx.Client, count: int) -> PretendJob:
    """Again where the disk under the job store was too slow: that is not what is measured here."""
    for _ in range(10):
        answer = http.post("/v1/jobs", json={"count": count, "steps": STEPS})
        if answer.status_code != 503:
            break
        time.sleep(1)
    answer.raise_for_status()
    return PretendJob(answer.json()["id"], count)


def good(stretch: Stretch) -> bool:
    tally, latencies_s = stretch.tally, stretch.latencies_s
    if tally.errors or (stretch.answered and not (tally.latencies_s or tally.events)):
        return False
    return not latencies_s or percentile_ms(latencies_s, 99) < P99_MS


if __name__ == "__main__":
    typer.run(main)
