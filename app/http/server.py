"""Uvicorn as this service wants it: a stricter connection, and no waiting at the end for who reads events or waits for a job."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.http.connection import Connection


class Server(uvicorn.Server):
    """Uvicorn would wait until its patience is over, then cancel each of them with a traceback."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        super().__init__(uvicorn.Config(app, http=Connection, ws="none", **options))
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.notifier.close()
        self._app.state.watcher.close()
        await super().shutdown(sockets)
        for connection in list(
            self.server_state.connections
        ):  # of whoever does not read the rest of an answer
            connection.transport.abort()
