"""How the API listens and how it stops."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import httpx
import pytest
from redis import Redis

from app.http.server import Server
from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.worker import IdleWorker

pytestmark = pytest.mark.usefixtures("redis")


def test_an_api_that_is_to_stop_is_first_not_ready_and_goes_on(
    settings: ApiSettings, redis: Redis, worker: IdleWorker
) -> None:
    worker.announce()
    # Longer than the test: the second signal ends the pause.
    server = Server(create_app(settings), port=0, log_level="warning", stop_pause_s=300)
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started, 20, "it serves")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        assert httpx.get(f"{url}/readyz").status_code == 200
        server.should_exit = True
        eventually(lambda: httpx.get(f"{url}/readyz").status_code == 503, 20, "not ready")
        assert problem(httpx.get(f"{url}/readyz/api"), 503)["type"].endswith(":stopping")
        assert httpx.get(f"{url}/healthz").status_code == 200
        job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"})
        assert job.status_code == 202
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
    assert not thread.is_alive()


def test_the_api_listens_on_a_unix_socket(settings: ApiSettings, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    behind = ApiSettings(**settings.model_dump() | {"trusted_proxies": "unix"})
    server = Server(create_app(behind), uds=str(path), log_level="warning")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, 20, "it serves")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/v1/jobs").status_code == 200
            named = {"x-forwarded-prefix": "/ddpm"}
            answer = client.get("http://localhost/openapi.json", headers=named)
            # Without keys, loopback through a proxy is refused even there.
            assert answer.status_code == 403
    finally:
        server.should_exit = True
        thread.join(20)


def test_the_api_takes_the_socket_that_it_is_given(settings: ApiSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        server = Server(create_app(settings), log_level="warning")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [given]})
        thread.start()
        try:
            eventually(lambda: server.started, 20, "it serves")
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        finally:
            server.should_exit = True
            thread.join(20)


def test_a_wait_ends_before_a_proxy_gives_up(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx and others wait for 60 s, which is also the most that can be asked for."""
    from app.routers import jobs

    assert jobs._LONGEST_WAIT_S == 50
    monkeypatch.setattr(jobs, "_LONGEST_WAIT_S", 0.1)
    job = api.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
    assert api.get(f"/v1/jobs/{job}?wait=60").json()["state"] == "queued"
