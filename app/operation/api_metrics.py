"""What one API process counts of itself: requests, and now and then its own state.

Several processes of a host may share a port, and a scrape reaches any of them. Each then counts in
a file of PROMETHEUS_MULTIPROC_DIR, and the scrape adds the files up (docs/decisions/0045). What has
to outlive a process is counted in Redis instead (app/operation/metrics.py).
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from app.operation.background import background

# Each counter would have a second series: when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]
SAMPLE_EVERY_S = 1.0
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
# A status poll takes about 1 ms, and a wait for a job up to a minute.
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_PAGE_BYTES = resource.getpagesize()
_STATM = Path("/proc/self/statm")
_DESCRIPTORS = Path("/proc/self/fd")


class ApiMetrics:
    """Counts what this process answers.

    Attributes:
        in_flight: Requests that are being answered, with waits and streams.
        waits: Of those, requests that wait for a job.
        streams: Of those, streams of events or previews.
        pools: Tell how many connections to Redis are in use, of each client.
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.registry = CollectorRegistry()
        self.in_flight = self.waits = self.streams = 0
        self._seconds = Histogram(
            "ddpm_http_request_seconds",
            "Seconds from a request to the beginning of its answer",
            ["method", "route", "status"],
            registry=self.registry,
            buckets=_BUCKETS_S,
        )
        self._by_owner = Counter(
            "ddpm_http_requests",
            "Requests by the owner of their key; without one, those that were refused or need none",
            ["owner"],
            registry=self.registry,
        )
        self._pool_wait = Histogram(
            "ddpm_redis_pool_wait_seconds",
            "Waits of more than a millisecond for a connection to Redis",
            registry=self.registry,
            buckets=(0.0025, 0.01, 0.025, 0.1, 0.25, 1),
        )
        self._store_errors = Counter(
            "ddpm_results_store_errors",
            "Times that the results store did not do what the API asked",
            registry=self.registry,
        )
        self.pools: list[Callable[[], float]] = []
        self._gauges: list[tuple[Gauge, Callable[[], float]]] = []
        # The histogram and counter of each set of labels: to look them up takes longer than to add.
        self._of: dict[tuple[str, str, int], Histogram] = {}
        self._owners: dict[str, Counter] = {}
        self.watch("ddpm_http_requests_in_flight", "Requests being answered", self._requests)
        self.watch("ddpm_http_waits_open", "Requests that wait for a job", lambda: self.waits)
        self.watch("ddpm_event_streams_open", "Streams of events or previews", lambda: self.streams)
        self.watch(
            "ddpm_redis_connections_in_use",
            "Connections to Redis that the API's processes use at the moment",
            lambda: sum(count() for count in self.pools),
        )
        self.watch("ddpm_api_memory_bytes", "Resident memory of the API's processes", memory_bytes)
        self.watch("ddpm_api_cpu_seconds", "Processor time of the API's processes", cpu_seconds)
        self.watch("ddpm_api_open_files", "Descriptors that the API's processes hold", open_files)
        self.watch("ddpm_api_processes", "API processes that answer behind this address", _one)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Add a gauge that has the sum of this value over all processes of the host."""
        gauge = Gauge(name, about, registry=self.registry, multiprocess_mode="livesum")
        self._gauges.append((gauge, value))

    def observe(self, method: str, route: str, status: int, seconds: float, owner: str) -> None:
        """Count a request that was answered.

        Args:
            method: As it was sent; what HTTP does not know is counted as `other`.
            route: Template of the path, so that there are few.
            status: Of the answer.
            seconds: Until the answer began.
            owner: Of its key; empty if it has none.
        """
        kind = (method, route, status // 100)
        histogram = self._of.get(kind)
        if histogram is None:
            known = method if method in _METHODS else "other"
            histogram = self._seconds.labels(known, route, f"{status // 100}xx")
            if known == method:
                self._of[kind] = histogram
        histogram.observe(seconds)
        counter = self._owners.get(owner)
        if counter is None:
            counter = self._owners[owner] = self._by_owner.labels(owner)
        counter.inc()

    def pool_waited(self, seconds: float) -> None:
        """Count a wait for a connection to Redis."""
        self._pool_wait.observe(seconds)

    def store_failed(self) -> None:
        """Count an error of the results store."""
        self._store_errors.inc()

    def sample(self) -> None:
        """Set the gauges to what they are now. Call it about once a second."""
        for gauge, value in self._gauges:
            gauge.set(value())

    def for_scrape(self) -> CollectorRegistry:
        """Return what a scrape shows: of this process, or of all that share its folder."""
        self.sample()
        folder = os.environ.get(MULTIPROCESS_DIR)
        if not folder:
            return self.registry
        for pid in _ended(Path(folder).glob("gauge_live*_*.db")):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
        return registry

    def _requests(self) -> float:
        return self.in_flight


@asynccontextmanager
async def sampling(metrics: ApiMetrics) -> AsyncIterator[None]:
    """Set the gauges once a second while the block runs, for scrapes that reach other processes."""
    async with background(_sample(metrics)):
        yield


async def _sample(metrics: ApiMetrics) -> None:
    while True:
        metrics.sample()
        await asyncio.sleep(SAMPLE_EVERY_S)


def memory_bytes() -> float:
    """Return the resident memory of this process, in bytes; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    return 0


def cpu_seconds() -> float:
    """Return the processor time that this process has used, in seconds."""
    times = os.times()
    return times.user + times.system


def open_files() -> float:
    """Return the number of this process's descriptors; 0 where the system does not tell."""
    with suppress(OSError):
        return len(os.listdir(_DESCRIPTORS))
    return 0


def _one() -> float:
    return 1


def _ended(files: Iterable[Path]) -> set[int]:
    """Return the ids of processes that have a file and are gone."""
    pids = {int(file.stem.rpartition("_")[2]) for file in files}
    return {pid for pid in pids if not Path(f"/proc/{pid}").exists()}
