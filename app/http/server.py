"""Uvicorn as this service needs it: with stricter connections, and without a wait at the end."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.http.connection import Connection
from worker.jobs.server_check import ClusterMode


class Server(uvicorn.Server):
    """Serves the app, and ends the requests that wait when it is asked to stop.

    Uvicorn would let readers of events and clients that wait for a job use up its grace period.
    It would then cancel each of them with a traceback.
    """

    def __init__(
        self, app: FastAPI, *, connection: type[Connection] = Connection, **options: Any
    ) -> None:
        """Take the app, the protocol of its connections, and uvicorn's own options."""
        super().__init__(uvicorn.Config(app, http=connection, ws="none", **options))
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, unless the job store cannot be used. The log says why, without a traceback."""
        try:
            await self._app.state.server_check.first()
        except ClusterMode:
            self.should_exit = True
            return
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams and waits, let requests finish, and close all connections."""
        self._app.state.notifier.close()
        self._app.state.watcher.close()
        await super().shutdown(sockets)
        # What is left belongs to clients that do not read the rest of an answer.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
