"""Against a server that speaks the contract's HTTP and plays a prepared job, one answer a poll."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner, Result

from cli import client
from cli import sample as module
from cli.main import app


def job(state: str, done: int, error: dict[str, str] | None = None) -> dict[str, Any]:
    images = [
        {"index": index, "state": "finished" if index < done else "running", "url": f"/v1/jobs/j/images/{index}"}
        for index in (0, 1)
    ]
    progress = {"fraction": done / 2, "images_done": done}
    return {"id": "j", "state": state, "seed": 7, "progress": progress, "images": images, "error": error}


Hiccup = Literal["hang up", "503", "503, in 1 s", "503, in an hour"]
HEADERS = {"503": {}, "503, in 1 s": {"retry-after": "1"}, "503, in an hour": {"retry-after": "3600"}}


@dataclass
class Service:
    """What it will answer to polls, in order, and what it was asked."""

    polls: list[dict[str, Any]]
    refusal: dict[str, Any] | None = None
    hiccups: dict[str, list[Hiccup]] = field(default_factory=dict)  # by path, each played once
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    authorizations: set[str | None] = field(default_factory=set)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        self.asked.append((method, path, json.loads(body) if body else None))
        if "/images/" in path:
            return 200, "image/png", b"PNG " + path[-1:].encode()
        if self.refusal:
            return 422, "application/problem+json", json.dumps(self.refusal).encode()
        found = job("queued", 0) if path == "/v1/jobs" else self.polls.pop(0)
        return 200, "application/json", json.dumps(found).encode()


@pytest.fixture
def service() -> Iterator[Service]:
    fake = Service(polls=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if hiccups := fake.hiccups.get(self.path.partition("?")[0]):
                return self.hiccup(hiccups.pop(0), body)
            fake.authorizations.add(self.headers["authorization"])
            status, kind, content = fake.answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def hiccup(self, kind: Hiccup, body: bytes) -> None:
            fake.asked.append((self.command, self.path, json.loads(body) if body else None))
            if kind == "hang up":
                return
            self.send_response(503)
            for name, value in HEADERS[kind].items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

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


def test_every_call_carries_the_key_from_the_environment(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.polls = [job("finished", 2)]
    ddpm_sample(service, tmp_path)
    assert service.authorizations == {None}
    service.polls, service.authorizations = [job("finished", 2)], set()
    monkeypatch.setenv("DDPM_KEY", "k3y")
    ddpm_sample(service, tmp_path)
    assert service.authorizations == {"Bearer k3y"}


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


def interrupt_after(polls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it waits for the answer to the next."""
    follow, asked = module._next, count()

    def next_or_interrupt(*parts: Any) -> dict[str, Any]:
        if next(asked) == polls:
            raise KeyboardInterrupt
        return follow(*parts)

    monkeypatch.setattr(module, "_next", next_or_interrupt)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("state", ["cancelled", "finished"])
def test_ctrl_c_cancels_the_job_and_saves_what_was_finished_by_then(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    service.polls = [job("running", 1), job(state, 2)]  # the second answers the cancel
    interrupt_after(1, monkeypatch)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == module.CANCELLED
    assert ("POST", "/v1/jobs/j/cancel", None) in service.asked
    assert files(tmp_path) == {"7-0.png": b"PNG 0", "7-1.png": b"PNG 1"}
    assert f"job j is {state}; its finished images (2) are in {tmp_path}" in result.stderr


def test_a_ctrl_c_that_does_not_reach_the_service_says_that_the_job_may_go_on(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.hiccups = {"/v1/jobs/j/cancel": ["hang up"]}
    interrupt_after(0, monkeypatch)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "job j may go on" in result.stderr


@pytest.mark.parametrize("path", ["/v1/jobs/j", "/v1/jobs/j/images/0"])
def test_a_hiccup_of_the_service_does_not_lose_the_job(service: Service, tmp_path: Path, path: str) -> None:
    service.hiccups = {path: ["hang up", "503"]}
    service.polls = [job("finished", 2)]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 0, result.output
    assert files(tmp_path) == {"7-0.png": b"PNG 0", "7-1.png": b"PNG 1"}


def test_a_busy_service_is_left_alone_for_as_long_as_it_asks(service: Service, tmp_path: Path) -> None:
    service.hiccups = {"/v1/jobs/j": ["503, in 1 s"]}
    service.polls = [job("finished", 2)]
    began = time.monotonic()
    assert ddpm_sample(service, tmp_path).exit_code == 0
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("hiccup", ["hang up", "503", "503, in an hour"])
def test_when_patience_ends_the_job_is_named_and_how_to_look_at_it(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hiccup: Hiccup
) -> None:
    monkeypatch.setattr(client, "_PATIENCE_S", 0.5)
    service.hiccups = {"/v1/jobs/j": [hiccup] * 9}
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert f"look at job j with `curl {service.url}/v1/jobs/j`" in result.stderr
    assert (len(service.hiccups["/v1/jobs/j"]) == 8) == (hiccup == "503, in an hour"), "asked again too soon, or not at all"


@pytest.mark.parametrize("hiccup", ["hang up", "503, in 1 s"])
def test_a_job_is_posted_once_whatever_happens(service: Service, tmp_path: Path, hiccup: Hiccup) -> None:
    service.hiccups = {"/v1/jobs": [hiccup]}
    result = ddpm_sample(service, tmp_path)
    assert (result.exit_code, len(service.asked)) == (1, 1)


def test_an_image_that_cannot_be_saved_cancels_the_job_and_leaves_nothing_half(service: Service, tmp_path: Path) -> None:
    (tmp_path / "7-1.png").mkdir()
    service.polls = [job("running", 2), job("cancelled", 2)]  # the second answers the cancel
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert service.asked[-1] == ("POST", "/v1/jobs/j/cancel", None)
    for part in ("7-1.png cannot be saved (Is a directory)", "--out", "job j is cancelled"):
        assert part in result.stderr
    assert files(tmp_path) == {"7-0.png": b"PNG 0"}


def test_a_full_disk_is_told_even_where_the_job_cannot_be_cancelled(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, png: bytes) -> None:
        with path.open("wb") as file:
            file.write(png[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    service.polls = [job("running", 1)]
    service.hiccups = {"/v1/jobs/j/cancel": ["503"]}
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "job j may go on" in result.stderr
    assert files(tmp_path) == {}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_does_not_stand_between_this_machine_and_itself(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.url = service.url.replace("127.0.0.1", host)
    service.polls = [job("finished", 2)]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 0, result.output


def test_a_proxy_serves_the_rest_of_the_world(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", service.url)
    service.url, service.polls = "http://ddpm.invalid", [job("finished", 2)]
    service.refusal = {"title": "the proxy was asked"}
    assert "the proxy was asked" in ddpm_sample(service, tmp_path).stderr


@pytest.mark.parametrize("command", ["api", "worker"])
def test_help_says_where_the_queue_is_by_default(command: str) -> None:
    assert "redis://127.0.0.1:6379/0" in CliRunner().invoke(app, [command, "--help"]).output
