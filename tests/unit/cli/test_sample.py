"""Against a server that speaks the contract's HTTP and plays a prepared job, one answer a poll."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli import sample as module
from cli.main import app


def job(state: str, done: int, error: dict[str, str] | None = None) -> dict[str, Any]:
    images = [
        {"index": index, "state": "finished" if index < done else "running", "url": f"/v1/jobs/j/images/{index}"}
        for index in (0, 1)
    ]
    progress = {"fraction": done / 2, "images_done": done}
    return {"id": "j", "state": state, "seed": 7, "progress": progress, "images": images, "error": error}


@dataclass
class Service:
    """What it will answer to polls, in order, and what it was asked."""

    polls: list[dict[str, Any]]
    refusal: dict[str, Any] | None = None
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        self.asked.append((method, path, json.loads(body) if body else None))
        if "/images/" in path:
            return 200, "image/png", b"PNG " + path[-1:].encode()
        if self.refusal:
            return 422, "application/problem+json", json.dumps(self.refusal).encode()
        found = job("queued", 0) if method == "POST" else self.polls.pop(0)
        return 200, "application/json", json.dumps(found).encode()


@pytest.fixture
def service() -> Iterator[Service]:
    fake = Service(polls=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, kind, content = fake.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield fake
        server.shutdown()


def ddpm_sample(service: Service, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["sample", "--url", service.url, "--out", str(out), *options])


def test_the_images_are_saved_under_seed_and_index(service: Service, tmp_path: Path) -> None:
    service.polls = [job("running", 0), job("running", 1), job("finished", 2)]
    result = ddpm_sample(service, tmp_path / "out", "--count", "2", "--seed", "7", "--sampler", "ddim")
    assert result.exit_code == 0, result.output
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"7-0.png": b"PNG 0", "7-1.png": b"PNG 1"}
    assert service.asked[0] == ("POST", "/v1/jobs", {"count": 2, "seed": 7, "sampler": "ddim"})
    assert sum("/images/" in path for _, path, _ in service.asked) == 2


def test_a_refusal_is_told_in_the_services_words(service: Service, tmp_path: Path) -> None:
    service.refusal = {"title": "Invalid request", "detail": "count=0 is less than 1; use 1 to 1024."}
    result = ddpm_sample(service, tmp_path, "--count", "0")
    assert (result.exit_code, result.stderr) == (1, "ddpm: count=0 is less than 1; use 1 to 1024.\n")


def test_a_failed_job_says_why(service: Service, tmp_path: Path) -> None:
    service.polls = [job("failed", 0, {"code": "worker_lost", "message": "three workers were lost"})]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "three workers were lost" in result.stderr


def test_without_a_service_the_remedy_is_to_start_one(service: Service, tmp_path: Path) -> None:
    service.url = "http://127.0.0.1:9"
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "make serve" in result.stderr


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_drawn(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = ddpm_sample(service, tmp_path / "file" / "out")
    assert (result.exit_code, "--out" in result.stderr, service.asked) == (1, True, [])


def test_ctrl_c_cancels_the_job_on_the_server(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = module._save

    def save_then_interrupt(*parts: Any) -> None:
        save(*parts)
        if parts[3]:
            raise KeyboardInterrupt

    service.polls = [job("running", 1), job("cancelled", 1)]
    monkeypatch.setattr(module, "_save", save_then_interrupt)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == module.CANCELLED
    assert ("POST", "/v1/jobs/j/cancel", None) in service.asked
    assert (tmp_path / "7-0.png").exists()
