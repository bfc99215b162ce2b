"""One API process: by itself, or one of several that share a port.

`python -m cli.serve.api_process HOST PORT LIMITS_FD` is one of several.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.settings import ApiSettings


def serve_alone(
    settings: ApiSettings,
    host: str,
    port: int,
    sockets: Sequence[socket.socket] = (),
    uds: Path | None = None,
) -> int:
    """Serve until the process is asked to stop, and return the exit status.

    Args:
        settings: What the operator has chosen.
        host: Address to listen on.
        port: Port to listen on.
        sockets: Sockets that listen already, instead.
        uds: Unix socket to listen on, instead.
    """
    return _serve(settings, sockets, None, host=host, port=port, uds=uds and str(uds))


def serve_one_of_several(settings: ApiSettings, host: str, port: int, limits_fd: int) -> int:
    """Serve a share of the connections to a port, and return the exit status.

    Args:
        settings: What the operator has chosen.
        host: Address to listen on.
        port: Port that `shared_port` has reserved.
        limits_fd: The file in which all processes count the requests of each key.
    """
    # Its supervisor has said that it starts, and where.
    return _serve(settings, [shared_port(host, port)], limits_fd, log_level="warning")


def shared_port(host: str, port: int) -> socket.socket:
    """Bind a socket to a port that other processes of this user may bind too.

    The kernel spreads connections over those that listen. One that only holds the port gets none.

    Raises:
        OSError: The address or the port cannot be used.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _serve(
    settings: ApiSettings,
    sockets: Sequence[socket.socket],
    limits_fd: int | None,
    **options: Any,
) -> int:
    from app.http.capacity import Capacity, below_descriptors
    from app.http.connection import Limits
    from app.http.server import Server
    from app.main import create_app
    from worker.logs import configure

    configure(settings.log_format, settings.log_level, secrets=settings.secrets, process="api")
    server = Server(
        create_app(settings, limits_fd),
        limits=Limits(
            Capacity(below_descriptors(settings.max_connections)), settings.max_body_bytes
        ),
        stop_pause_s=settings.stop_pause_s,
        timeout_keep_alive=settings.keep_alive_s,
        # app/http/request_log.py writes a line for each request, and worker/logs.py all lines.
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=3,
        **options,
    )
    # A full collection would look at 100,000 objects that never go: 61 ms in which nobody is
    # answered, and several times that on busy cores.
    gc.collect()
    gc.freeze()
    server.run(list(sockets) or None)
    return int(not server.started)


def _main(host: str, port: str, limits_fd: str) -> int:
    from app.settings import ApiSettings
    from cli.settings import read

    return serve_one_of_several(read(ApiSettings), host, int(port), int(limits_fd))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
