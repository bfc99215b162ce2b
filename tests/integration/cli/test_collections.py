"""Garbage collections of an API process, during which nobody is answered."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys

import httpx

from tests.support.processes import ROOT, eventually

# The server passes the signal on when it has ended, and the process says what it has kept.
API = """
import gc, signal
def say(*_):
    print("frozen", gc.get_freeze_count(), "others", len(gc.get_objects()), flush=True)
signal.signal(signal.SIGTERM, say)
from cli.main import app
app(["api", "--port", "{port}"])
"""


def test_a_collection_does_not_look_at_what_an_api_process_keeps_for_good() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    env = {
        "PATH": "/usr/bin:/bin",
        "DDPM_API_PROCESSES": "1",
        "DDPM_REDIS_URL": "redis://127.0.0.1:9",
    }
    command = [sys.executable, "-c", API.format(port=port)]
    process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        except httpx.HTTPError:
            assert process.poll() is None
            return False

    try:
        eventually(answers, 60, "the API answers")
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    words = said.split()
    assert int(words[words.index("frozen") + 1]) > 50_000
    assert int(words[words.index("others") + 1]) < 50_000
