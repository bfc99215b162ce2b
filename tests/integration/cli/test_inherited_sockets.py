"""`ddpm api` on a socket that systemd has opened."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from cli.serve.inherited_sockets import inherited_sockets
from tests.support.processes import ROOT, eventually


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX], ids=["TCP", "Unix"])
def test_the_api_serves_on_the_socket_that_it_inherits(
    shared_valkey_url: str, tmp_path: Path, family: socket.AddressFamily
) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(family) as listening:
        listening.bind(str(path) if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listening.listen()
        command = shlex.join([sys.executable, "-m", "cli", "api"])
        fd = listening.fileno()
        script = f"exec 3<&{fd} {fd}<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec {command}"
        process = subprocess.Popen(
            ["bash", "-c", script if fd != 3 else f"LISTEN_PID=$$ LISTEN_FDS=1 exec {command}"],
            pass_fds=[fd],
            env={**os.environ, "DDPM_REDIS_URL": shared_valkey_url},
            cwd=ROOT,
        )
        uds = str(path) if family == socket.AF_UNIX else None
        port = "" if uds else f":{listening.getsockname()[1]}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=uds), timeout=30) as client:
            try:
                # The kernel holds the connection until the process takes it.
                assert client.get(f"http://localhost{port}/healthz").status_code == 200
            finally:
                process.terminate()
                eventually(lambda: process.poll() is not None, 20, "it has stopped")


def test_sockets_of_another_process_are_left_alone() -> None:
    assert inherited_sockets({}, 7) == []
    assert inherited_sockets({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, 7) == []
