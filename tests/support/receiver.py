"""A server that webhooks are sent to: real HTTP, on loopback."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    """A request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Requests that were received, and how they are answered.

    Attributes:
        statuses: The answers: each once, the last one for ever.
        endless: Whether the body of an answer never ends.
        held: No answer is given until it is set.
    """

    port: int = 0
    statuses: list[int] = field(default_factory=lambda: [204])
    received: list[Received] = field(default_factory=list)
    endless: bool = False
    held: threading.Event | None = None

    def status(self) -> int:
        """Take the status of the next answer."""
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Serve on a free port."""
    hook = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            hook.received.append(Received(self.path, headers, body))
            if hook.held:
                hook.held.wait(30)
            self.send_response(hook.status())
            self.send_header("location", f"http://127.0.0.1:{hook.port}/elsewhere")
            if not hook.endless:
                self.send_header("content-length", "0")
            self.end_headers()
            try:
                while hook.endless:
                    self.wfile.write(b" " * 65536)
            except OSError:
                return  # the client has enough

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        # A client that refuses the certificate is no error.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    hook.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
