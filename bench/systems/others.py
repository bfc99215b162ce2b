"""What is compared: each makes images on request, runs in processes of its own, and sleeps while another is measured."""

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
from bench.systems.service import Asked, service

ROOT = Path(__file__).parents[2]
JOB_TIMEOUT_S = 3600


class System(Protocol):
    name: str
    how: str

    def awake(self) -> AbstractContextManager[Draw]:
        """Ready for work within, stopped outside."""


class Ours:
    """The whole service: Valkey, the API and one worker, started anew each time, reached over HTTP."""

    def __init__(self, folder: Path, model: Path, device: str, precision: Asked) -> None:
        self.name, self.how = "this service", ""
        self._start = partial(service, folder, model, device, precision)

    @contextmanager
    def awake(self) -> Iterator[Draw]:
        with self._start() as client:
            self.how = f"`ddpm up` with one worker, in {client.precision()}, PNGs over HTTP"
            yield lambda count, steps, seed: client.pngs(client.post(count, steps, seed=seed))


class RqWorker:
    """One of RQ's own workers, that runs a diffusers pipeline as its job."""

    how = "DDPMPipeline as it comes, PNGs as the job's result"

    def __init__(self, name: str, worker_class: str, redis_url: str, pipe: Pipe) -> None:
        self.name, self._pipe = name, pipe
        self._queue = Queue(worker_class, connection=Redis.from_url(redis_url, socket_timeout=None))
        command = [
            sys.executable,
            "-m",
            "rq.cli",
            "worker",
            worker_class,
            "--worker-class",
            worker_class,
            "--url",
            redis_url,
        ]
        with threads_as_they_come():
            self._process = subprocess.Popen([*command, "--quiet"], cwd=ROOT)
        self.pid = self._process.pid
        os.kill(self.pid, signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[Draw]:
        with _going_on(self.pid):
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
        self._process.kill()
        self._process.wait()


class Alone:
    """What draws with no queue before it, in a process of its own, one call after another."""

    def __init__(self, name: str, prepare: Callable[[], tuple[str, Draw]]) -> None:
        """`prepare` is called in that process; it says how it draws."""
        context = get_context("spawn")
        self._line, other = context.Pipe()
        self._process = context.Process(target=_answer, args=(other, prepare), daemon=True)
        self._process.start()
        other.close()
        self._one_at_a_time = threading.Lock()
        self.name, self.how = name, self._line.recv()
        os.kill(self.pid, signal.SIGSTOP)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @contextmanager
    def awake(self) -> Iterator[Draw]:
        with _going_on(self.pid):
            yield self._draw

    def _draw(self, count: int, steps: int, seed: int) -> list[bytes]:
        with self._one_at_a_time:
            self._line.send((count, steps, seed))
            return cast("list[bytes]", self._line.recv())

    def close(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._line.close()
        self._process.join()


@contextmanager
def threads_as_they_come() -> Iterator[None]:
    """For processes that start within: OpenMP's own default, instead of what this service and `bench` set."""
    ours = os.environ["GOMP_SPINCOUNT"]
    os.environ["GOMP_SPINCOUNT"] = "300000"
    try:
        yield
    finally:
        os.environ["GOMP_SPINCOUNT"] = ours


@contextmanager
def _going_on(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGSTOP)


def _answer(line: Connection, prepare: Callable[[], tuple[str, Draw]]) -> None:
    """In the other process: say how it draws, then make what is asked for until nobody is left to ask."""
    how, draw = prepare()
    line.send(how)
    with suppress(EOFError):
        while True:
            line.send(draw(*line.recv()))
