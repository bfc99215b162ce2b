"""Uvicorn as this service needs it: with stricter connections, and without a wait at the end."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.http.connection import Connection, Limits
from worker.jobs.server_check import ClusterMode


class Server(uvicorn.Server):
    """Serves the app, and ends the requests that wait when it is asked to stop.

    Uvicorn would let readers of events and clients that wait for a job use up its grace period.
    It would then cancel each of them with a traceback.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        connection: type[Connection] = Connection,
        limits: Limits | None = None,
        stop_pause_s: float = 0.0,
        **options: Any,
    ) -> None:
        """Take the app, and how it is served.

        Args:
            app: The API.
            connection: The protocol of its connections.
            limits: What the connections share.
            stop_pause_s: Seconds for which it serves on when it is asked to stop, not ready.
            options: Of `uvicorn.Config`.
        """
        protocol: Any = partial(connection, limits=limits or Limits())
        # app/http/proxies.py reads the headers of proxies, from those that are trusted.
        config = uvicorn.Config(app, http=protocol, ws="none", proxy_headers=False, **options)
        super().__init__(config)
        self._app = app
        self._stop_pause_s = stop_pause_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, unless the job store cannot be used. The log says why, without a traceback."""
        try:
            await self._app.state.server_check.first()
        except ClusterMode:
            self.should_exit = True
            return
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that no more is wanted; then end streams and waits, finish requests, and close."""
        self._app.state.stopping = True
        await self._pause()
        self._app.state.notifier.close()
        self._app.state.watcher.close()
        await super().shutdown(sockets)
        # What is left belongs to clients that do not read the rest of an answer.
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _pause(self) -> None:
        """Serve on, until balancers have seen /readyz. A second Ctrl-C ends this."""
        until = asyncio.get_running_loop().time() + self._stop_pause_s
        while asyncio.get_running_loop().time() < until and not self.force_exit:
            await asyncio.sleep(0.05)
