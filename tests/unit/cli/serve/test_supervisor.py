"""The supervisor: restarts, the order of stages, and requests to stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.serve.child import Child
from cli.serve.supervisor import KILLED, Stage, Supervisor

SAY_WHEN_STOPPED = """
import pathlib, signal, sys, time
def stop(*_): open(sys.argv[1], 'a').write(sys.argv[2] + '\\n'); sys.exit()
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1] + '-' + sys.argv[2]).touch()
time.sleep(60)
"""
DEAF = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def python(name: str, program: str, *args: object) -> Child:
    return Child(name, [sys.executable, "-c", program, *map(str, args)])


def stop_when(condition: Callable[[], bool]) -> Callable[[], None]:
    def watch() -> None:
        if condition():
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def test_a_child_that_dies_is_reported_and_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "starts"
    child = python("api", "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(3)", log)
    supervisor = Supervisor(
        [Stage([child])], stop_when(lambda: log.exists() and log.read_text() == "xx")
    )
    assert supervisor.run() == 0
    assert "api exited with 3 after" in capfd.readouterr().out


def test_a_closed_terminal_is_a_request_to_stop() -> None:
    child = python("valkey", "import time; time.sleep(60)")
    # The tests themselves may run under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert Supervisor([Stage([child])], lambda: os.kill(os.getpid(), signal.SIGHUP)).run() == 0
    assert not child.alive


def test_the_last_stage_stops_first(tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = ("valkey", "api", "worker")
    stages = [Stage([python(name, SAY_WHEN_STOPPED, log, name)]) for name in names]
    up = stop_when(lambda: all(Path(f"{log}-{name}").exists() for name in names))
    assert Supervisor(stages, up).run() == 0
    assert log.read_text().split() == ["worker", "api", "valkey"]


def test_a_stage_waits_for_the_one_before(tmp_path: Path) -> None:
    later = python("api", "pass")
    started_early = []

    def ready() -> bool:
        started_early.append(later.process is not None)
        return len(started_early) == 5

    first = Stage([python("valkey", "import time; time.sleep(60)")], ready)
    assert Supervisor([first, Stage([later])], stop_when(lambda: True)).run() == 0
    assert started_early == [False] * 5


def test_a_child_that_will_not_stop_is_killed_in_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    deaf = python("worker-0", DEAF, tmp_path / "up")
    deaf.patience_s = 0.3
    assert Supervisor([Stage([deaf])], stop_when((tmp_path / "up").exists)).run() == 0
    assert "worker-0 did not stop within 0.3 s; killed" in capfd.readouterr().out
    assert not deaf.alive


def test_a_second_request_kills(tmp_path: Path) -> None:
    deaf = python("worker-0", DEAF, tmp_path / "up")
    deaf.patience_s = 3600

    def stop_twice() -> None:
        if (tmp_path / "up").exists():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert Supervisor([Stage([deaf])], stop_twice).run() == KILLED
    assert not deaf.alive
