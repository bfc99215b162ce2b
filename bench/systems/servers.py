"""The systems under comparison.

Each makes images on request and runs in processes of its own, which are stopped while another is
measured.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, cast

from redis import Redis
from rq import Queue

from bench.systems import pipelines
from bench.systems.drawing import Draw
from bench.systems.pipelines import Pipe
from bench.systems.service import PrecisionOption, service

ROOT = Path(__file__).parents[2]
JOB_TIMEOUT_S = 3600


class System(Protocol):
    """A system that can be measured.

    Attributes:
        name: Name in the tables.
        description: How it draws, known once it has been awake.
    """

    name: str
    description: str

    def awake(self) -> AbstractContextManager[Draw]:
        """Return a block in which it is ready for work; outside it is stopped."""


class ThisService:
    """The whole service: Valkey, the API and one worker, reached over HTTP.

    It is started each time that it is measured.
    """

    def __init__(self, folder: Path, model: Path, device: str, precision: PrecisionOption) -> None:
        self.name = "this service"
        self.description = ""
        self._start = partial(service, folder, model, device, precision)

    @contextmanager
    def awake(self) -> Iterator[Draw]:
        """Start the service for the block."""
        with self._start() as client:
            precision = client.precision()
            self.description = f"`ddpm up` with one worker, in {precision}, PNGs over HTTP"
            yield lambda count, steps, seed: client.pngs(client.post(count, steps, seed=seed))


class RqWorker:
    """A worker of RQ's own, which runs a diffusers pipeline as its job."""

    description = "DDPMPipeline as it comes, PNGs as the job's result"

    def __init__(self, name: str, worker_class: str, redis_url: str, pipe: Pipe) -> None:
        """Start the worker, and stop it until it is measured.

        Args:
            name: Name in the tables.
            worker_class: RQ's class, which names the queue too.
            redis_url: Where the queue is.
            pipe: Weights and device of the pipeline.
        """
        self.name = name
        self._pipe = pipe
        self._queue = Queue(worker_class, connection=Redis.from_url(redis_url, socket_timeout=None))
        command = [sys.executable, "-m", "rq.cli", "worker", worker_class]
        command += ["--worker-class", worker_class, "--url", redis_url, "--quiet"]
        with default_openmp_spin():
            self._process = subprocess.Popen(command, cwd=ROOT)
        self.pid = self._process.pid
        os.kill(self.pid, signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[Draw]:
        """Let the process run during the block."""
        with _continued(self.pid):
            yield self._draw

    def _draw(self, count: int, steps: int, seed: int) -> list[bytes]:
        job = self._queue.enqueue_call(
            pipelines.draw, (self._pipe, count, steps, seed), timeout=JOB_TIMEOUT_S
        )
        result = job.latest_result(timeout=JOB_TIMEOUT_S)
        if result is None or result.type is not result.Type.SUCCESSFUL:
            raise RuntimeError(f"{self.name}: job {job.id} failed: {result and result.exc_string}")
        return cast("list[bytes]", result.return_value)

    def close(self) -> None:
        """Kill the worker."""
        self._process.kill()
        self._process.wait()


class DrawingProcess:
    """A process that draws with no queue in front of it, one call after another."""

    def __init__(self, name: str, prepare: Callable[[], tuple[str, Draw]]) -> None:
        """Start the process, and stop it until it is measured.

        Args:
            name: Name in the tables.
            prepare: Called in the process; returns a description of how it draws, and what draws.
        """
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, prepare), daemon=True)
        self._process.start()
        other.close()
        self._one_at_a_time = threading.Lock()
        self.name = name
        self.description = self._connection.recv()
        os.kill(self.pid, signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @contextmanager
    def awake(self) -> Iterator[Draw]:
        """Let the process run during the block."""
        with _continued(self.pid):
            yield self._draw

    def _draw(self, count: int, steps: int, seed: int) -> list[bytes]:
        with self._one_at_a_time:
            self._connection.send((count, steps, seed))
            return cast("list[bytes]", self._connection.recv())

    def close(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGCONT)
        self._connection.close()
        self._process.join()


@contextmanager
def default_openmp_spin() -> Iterator[None]:
    """Give processes that start in the block OpenMP's default spin, not that of this service."""
    ours = os.environ["GOMP_SPINCOUNT"]
    os.environ["GOMP_SPINCOUNT"] = "300000"
    try:
        yield
    finally:
        os.environ["GOMP_SPINCOUNT"] = ours


@contextmanager
def _continued(pid: int) -> Iterator[None]:
    """Let a stopped process run during the block."""
    os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGSTOP)


def _serve(connection: Connection, prepare: Callable[[], tuple[str, Draw]]) -> None:
    """Send the description, then draw what is asked for until nobody is left to ask.

    It runs in the other process.
    """
    description, draw = prepare()
    connection.send(description)
    with suppress(EOFError):
        while True:
            connection.send(draw(*connection.recv()))
