"""Supervised processes: their restarts, log lines and deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cli.serve.child import Child, ending

SUPERVISOR = """
import sys, time
from cli.serve.child import Child
child = Child('x', [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'])
child.start()
print(child.process.pid)
time.sleep(60)
"""


def test_the_delay_doubles_to_ten_seconds() -> None:
    child = Child("api", [])
    assert [child.delay_after(lived_s=0.1) for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_the_delay_starts_over_after_a_steady_life() -> None:
    child = Child("api", [])
    for _ in range(5):
        child.delay_after(lived_s=0.1)
    assert [child.delay_after(lived_s=31), child.delay_after(lived_s=0.1)] == [0.5, 1]


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with 0"), (-9, "was killed by SIGKILL"), (-63, "was killed by signal 63")],
)
def test_an_ending_is_described_in_words(code: int, words: str) -> None:
    assert ending(code) == words


def test_lines_carry_the_name_of_their_child(capfd: pytest.CaptureFixture[str]) -> None:
    child = Child(
        "api", [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr)"]
    )
    child.start()
    child.finish()
    assert set(capfd.readouterr().out.splitlines()) == {"api      | out", "api      | err"}


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells children of their parent's death"
)
def test_a_child_dies_with_a_supervisor_that_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SUPERVISOR], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip() for _ in range(2)}
        pid = int((lines - {"x        | 1"}).pop())
        parent.send_signal(signal.SIGKILL)
    assert _gone_within(pid, seconds=60)


def _gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
