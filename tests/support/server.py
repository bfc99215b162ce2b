"""The API on a real port, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from app.http.server import Server
from app.main import create_app
from app.settings import ApiSettings

# On a busy machine the store's answer may take longer than the second that the API waits for it.
_PATIENCE_S = 20.0
# As `ddpm api` has it. Uvicorn's 5 s are also httpx's, and a connection that one closes while the
# other uses it again is an error that a busy machine meets.
_KEEP_ALIVE_S = 75


def create_fresh_app(settings: ApiSettings) -> FastAPI:
    """Build the API, which reads all open work for each answer, not once a second."""
    app = create_app(settings)
    app.state.queue.max_age_s = 0.0
    return app


@contextmanager
def serve(app: FastAPI, patient: bool = True, **options: Any) -> Iterator[str]:
    """Serve `app` on a free port, as `ddpm api` does, and yield its base URL.

    Args:
        app: The API.
        patient: Wait for the store's answers as long as a busy machine needs. Tests of a store that
            does not answer switch it off.
        **options: Those of `Server`, which hands uvicorn's on.
    """
    if patient:
        for client in (app.state.redis, app.state.durable_redis):
            client.connection_pool.connection_kwargs["socket_timeout"] = _PATIENCE_S
    options.setdefault("timeout_keep_alive", _KEEP_ALIVE_S)
    server = Server(app, port=0, log_level="warning", timeout_graceful_shutdown=1, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        # FastAPI builds its routes at the first request, which two threads must not do at once.
        httpx.get(f"{url}/nowhere")
        yield url
    finally:
        server.should_exit = True
        thread.join()
