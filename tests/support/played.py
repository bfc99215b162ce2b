"""A server that speaks the API's HTTP and plays a prepared job, one answer a poll."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from typer.testing import CliRunner, Result

from cli.main import app


def job(
    state: str, done: int, error: dict[str, str] | None = None, expired: int = 0
) -> dict[str, Any]:
    """Make a job of two images: the first `done` are finished, the first `expired` are gone."""
    states = [
        "expired" if index < expired else "finished" if index < done else "running"
        for index in (0, 1)
    ]
    images = [
        {"index": index, "state": state, "url": f"/v1/jobs/j/images/{index}"}
        for index, state in enumerate(states)
    ]
    progress = {"fraction": done / 2, "images_done": done}
    return {
        "id": "j",
        "state": state,
        "seed": 7,
        "count": 2,
        "progress": progress,
        "images": images,
        "error": error,
    }


# How the server can misbehave.
Fault = Literal[
    "hang up",
    "503",
    "503, in 1 s",
    "503, in an hour",
    "429, in 1 s",
    "429, in an hour",
    "moved",
    "HTML",
    "a list",
]
ANSWERS: dict[Fault, tuple[int, dict[str, str]]] = {
    "503": (503, {}),
    "503, in 1 s": (503, {"retry-after": "1"}),
    "503, in an hour": (503, {"retry-after": "3600"}),
    "429, in 1 s": (429, {"retry-after": "1"}),
    "429, in an hour": (429, {"retry-after": "3600"}),
    "moved": (308, {"location": "https://gpu-box/v1/jobs"}),
    "HTML": (200, {"content-type": "text/html"}),
    "a list": (200, {"content-type": "application/json"}),
}
BODIES: dict[Fault, bytes] = {"HTML": b"<html>Log in</html>", "a list": b"[]"}


@dataclass
class Played:
    """The script of the server, and the requests that it got.

    Attributes:
        polls: Answers to polls of the job, in order.
        refusal: A problem that answers every request but those for images.
        faults: Faults by path, each played once before the path is answered.
        asked: Method, path and body of each request.
        authorizations: All values of the header that were sent.
        idempotency_keys: The header of each post of a job.
    """

    polls: list[dict[str, Any]]
    refusal: dict[str, Any] | None = None
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    idempotency_keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Give status, content type and body."""
        if "/images/" in path:
            return 200, "image/png", b"PNG " + path[-1:].encode()
        if self.refusal:
            return 422, "application/problem+json", json.dumps(self.refusal).encode()
        played = job("queued", 0) if path == "/v1/jobs" else self.polls.pop(0)
        return 200, "application/json", json.dumps(played).encode()


class _Handler(BaseHTTPRequestHandler):
    played: Played

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.played.asked.append((self.command, self.path, json.loads(body) if body else None))
        self.played.authorizations.add(self.headers["authorization"])
        if self.path == "/v1/jobs":
            self.played.idempotency_keys.append(self.headers["idempotency-key"])
        if faults := self.played.faults.get(self.path.partition("?")[0]):
            self._misbehave(faults.pop(0))
        else:
            status, kind, content = self.played.answer(self.path)
            self._send(status, {"content-type": kind}, content)

    do_POST = do_GET

    def _misbehave(self, fault: Fault) -> None:
        if fault != "hang up":
            self._send(*ANSWERS[fault], BODIES.get(fault, b""))

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def playing() -> Iterator[Played]:
    """Serve on a free port."""
    played = Played(polls=[])
    handler = type("Handler", (_Handler,), {"played": played})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        played.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield played
        server.shutdown()


def ddpm_sample(played: Played, out: Path, *options: str) -> Result:
    """Run `ddpm sample` against the server."""
    return CliRunner().invoke(app, ["sample", "--url", played.url, "--out", str(out), *options])


def files(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
