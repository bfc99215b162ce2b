"""The cost of 1,000 pollers and 200 event streams for one API process.

`python -m bench.commands.pollers` measures latencies in milliseconds, the API's share of a core
and its resident memory in MiB. The API, a Valkey, workers that compute nothing and the clients are
processes of their own. Every poller has its own job and asks for it once a second. The command
exits with 1 if a request failed, a stream missed the end of its job, or a status was too slow.
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
from bench.systems.api import Api, Meter, start_api

# Images of a job, over and over.
COUNTS = [1] * 10 + [16] * 5 + [64] * 4 + [1024]
# The largest 99th percentile of latency that passes.
P99_MS = 250
IDLE_S = 5.0
# Setting for a queue that never fills.
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
    """A period under one kind of load.

    Attributes:
        title: Its name in the table.
        tally: What the clients saw.
        meter: What it cost the API.
        answered: Whether answers are expected. Nobody asks while it is idle, and `?wait=` waits on.
    """

    title: str
    tally: Tally
    meter: Meter
    answered: bool

    @property
    def latencies_s(self) -> list[float]:
        """Seconds of all requests; those that had no answer by the end took at least so long."""
        return self.tally.latencies_s + (self.tally.unanswered_s if self.answered else [])

    def cells(self) -> list[str]:
        """Return the cells of the table's row."""
        tally = self.tally
        meter = self.meter
        requests = len(tally.latencies_s)
        first, middle, last = (meter.resident_mib[i] for i in (0, len(meter.resident_mib) // 2, -1))
        return [
            self.title,
            str(requests),
            str(len(tally.errors)),
            str(tally.events),
            *(format_percentile(self.latencies_s, percent) for percent in (50, 95, 99)),
            format_percentile(tally.late_s, 99),
            f"{meter.cpu_s / meter.wall_s:.1%}",
            f"{1e3 * meter.cpu_s / requests:.2f} ms" if requests else "",
            f"{first:.0f} → {middle:.0f} → {last:.0f} MiB",
        ]


def format_percentile(seconds: Sequence[float], percent: int) -> str:
    """Return a percentile in milliseconds; empty where there are no values."""
    return f"{percentile_ms(seconds, percent):.0f} ms" if seconds else ""


def percentile_ms(seconds: Sequence[float], percent: int) -> float:
    """Return a percentile of seconds, in milliseconds."""
    return 1e3 * statistics.quantiles(seconds, n=100)[percent - 1]


def main(
    pollers: Annotated[
        int, typer.Option(min=100, help="Clients that ask for a status every second, of a job each")
    ] = 1000,
    streams: Annotated[int, typer.Option(min=1, help="Event streams, each of a running job")] = 200,
    seconds: Annotated[float, typer.Option(min=2, help="How long they do it")] = 60,
    out: Out = OUT,
) -> None:
    """Poll, then poll and stream, then wait with `?wait=`, and measure what it costs."""
    report = Report(out, "pollers", "cpu")
    bounds = {"max_open_image_steps": NO_BOUND, "max_open_image_steps_per_key": NO_BOUND}
    with start_api(out, **bounds) as api:
        stretches = list(measure(api, pollers, streams, seconds))
    report.table(HEAD, [stretch.cells() for stretch in stretches])
    errors = Counter(error for stretch in stretches for error in stretch.tally.errors)
    for error, times in errors.most_common(10):
        report.say(f"{times} times: {error}")
    raise typer.Exit(int(not all(map(is_good, stretches))))


def measure(api: Api, pollers: int, streams: int, seconds: float) -> Iterator[Stretch]:
    """Yield the stretches, from idle to idle.

    Args:
        api: The API under test.
        pollers: How many clients poll, each a job of its own.
        streams: How many read events, each of a running job.
        seconds: Length of the stretch in which both do; others take a third of it.
    """
    yield run_stretch("idle", api, [], [], IDLE_S)
    jobs = post_jobs(api, pollers)
    middle = (streams + pollers) // 2
    running = jobs[:streams]
    queued = jobs[streams:middle]
    finished = jobs[middle:]
    pretence = Pretence(api.redis_url)
    pretence.start(running + finished)
    pretence.finish(finished)
    status = [f"/v1/jobs/{job.id}" for job in jobs]
    events = [f"/v1/jobs/{job.id}/events" for job in running]
    waits = [f"/v1/jobs/{queued[n % len(queued)].id}?wait=60" for n in range(pollers)]
    with Reports(api.redis_url, running):
        yield run_stretch(f"{pollers} pollers", api, status, [], seconds / 3)
        yield run_stretch(f"{streams} streams", api, [], events, seconds / 3)
        yield run_stretch(
            f"{pollers} pollers, {streams} streams",
            api,
            status,
            events,
            seconds,
            end=lambda: pretence.finish(running),
        )
    yield run_stretch(f"{pollers} wait", api, waits, [], seconds / 3, answered=False)
    yield run_stretch("idle", api, [], [], IDLE_S)


def run_stretch(
    title: str,
    api: Api,
    polled: Sequence[str],
    streamed: Sequence[str],
    seconds: float,
    end: Callable[[], object] | None = None,
    answered: bool = True,
) -> Stretch:
    """Run clients against the API, and measure both.

    Args:
        title: Name of the stretch in the table.
        api: The API under test.
        polled: Paths to poll once a second, one for each client.
        streamed: Paths of event streams to read.
        seconds: How long to poll.
        end: Called after that to end the streams; None where clients just leave.
        answered: Whether requests are to be answered.
    """
    with Meter(api) as meter:
        tally = uvloop.run(crowd(api.port, polled, streamed, seconds, end))
    return Stretch(title, tally, meter, answered and bool(polled or streamed))


def post_jobs(api: Api, number: int) -> list[PretendJob]:
    """Post so many jobs of different sizes."""
    with httpx.Client(base_url=api.url, timeout=30) as http:
        return [_post(http, COUNTS[n % len(COUNTS)]) for n in range(number)]


def _post(http: httpx.Client, count: int) -> PretendJob:
    """Post a job.

    It is posted again if the disk under the job store was too slow, which is not measured here.
    """
    for _ in range(10):
        answer = http.post("/v1/jobs", json={"count": count, "steps": STEPS})
        if answer.status_code != 503:
            break
        time.sleep(1)
    answer.raise_for_status()
    return PretendJob(answer.json()["id"], count)


def is_good(stretch: Stretch) -> bool:
    """Return whether there were answers, no errors, and a 99th percentile below P99_MS."""
    tally = stretch.tally
    if tally.errors or (stretch.answered and not (tally.latencies_s or tally.events)):
        return False
    return not stretch.latencies_s or percentile_ms(stretch.latencies_s, 99) < P99_MS


if __name__ == "__main__":
    typer.run(main)
