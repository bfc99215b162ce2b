"""`ddpm up` with real processes: their start, their restarts, their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.folders import write_model

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    # Two workers start one after the other, and calibrate. It takes 12 s on an idle machine.
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


class Up:
    """A running `ddpm up`."""

    def __init__(self, data_dir: Path, scratch: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.log = data_dir.parent / f"up-{self.port}.log"
        self.url = f"http://127.0.0.1:{self.port}"
        env = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_")}
        env |= {
            "DDPM_DATA_DIR": str(data_dir),
            "DDPM_MODELS": "tiny",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
        }
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "cli", "up", "--port", str(self.port), *options]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def wait_ready(self) -> None:
        """Wait until it prints that it is ready."""
        self.wait(lambda: f"ready on {self.url}" in self.log.read_text())

    def wait(self, condition: Callable[[], bool], seconds: float = 200) -> None:
        """Wait until the condition holds, while the supervisor runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def children(self) -> dict[int, str]:
        """Return the command lines of its children by process id."""
        return {pid: line for pid in children_of(self.process.pid) if (line := command_line(pid))}

    def child(self, words: str) -> int:
        """Return the process id of the one child whose command line has these words."""
        (pid,) = [pid for pid, line in self.children().items() if words in line]
        return pid

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=200)


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder, with a space in its name and one small model in it."""
    folder = tmp_path / "the data"
    write_model(folder / "models", "tiny")
    return folder


@pytest.fixture
def start(data_dir: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []
    # Its path must be short, because the server's socket lies in it.
    with tempfile.TemporaryDirectory(prefix="up-") as scratch:

        def _start(*options: str) -> Up:
            started.append(Up(data_dir, Path(scratch), *options))
            return started[-1]

        yield _start
        for up in started:
            if up.process.poll() is None:
                # Killed, it would leave its children running beside other tests.
                up.stop()


def test_a_supervisor_restarts_dead_children_stops_cleanly_and_keeps_its_data(
    start: Callable[..., Up],
) -> None:
    up = start()
    up.wait_ready()
    with httpx.Client(base_url=up.url, timeout=30) as http:
        request = {"model": "tiny", "count": 2, "seed": 7, "steps": 4}
        job = http.post("/v1/jobs", json=request).raise_for_status().json()
        while job["state"] in ("queued", "running"):
            job = http.get(f"/v1/jobs/{job['id']}", params={"wait": 20}).json()
        png = http.get(job["images"][0]["url"]).raise_for_status().content

    os.kill(up.child("cli api"), signal.SIGKILL)
    up.wait(lambda: "api was killed by SIGKILL" in up.log.read_text())
    up.wait(lambda: answers(up.url))
    children = up.children()
    assert len(children) == 3
    assert up.stop() == 0, up.log.read_text()
    assert not any(command_line(pid) for pid in children)

    again = start()
    again.wait_ready()
    assert httpx.get(f"{again.url}{job['images'][0]['url']}").content == png
    assert again.stop() == 0


def test_nothing_outlives_a_supervisor_that_was_killed(start: Callable[..., Up]) -> None:
    up = start("--workers", "2")
    up.wait(lambda: len([line for line in up.children().values() if "cli worker" in line]) == 2)
    children = up.children()
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 60
    while any(command_line(pid) for pid in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)


def test_a_second_supervisor_on_the_same_data_is_refused(start: Callable[..., Up]) -> None:
    first = start()
    first.wait(lambda: any("valkey-server" in line for line in first.children().values()))
    second = start()
    assert second.process.wait(timeout=200) == 1
    assert f"is in use by another `ddpm up` (pid {first.process.pid})" in second.log.read_text()
    assert first.process.poll() is None


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False
