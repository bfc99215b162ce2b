"""A server that speaks the Hub's protocol, and one that lies about what it holds."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "5d8b3a2f9c7e41d0a6b5c4d3e2f1a0b9c8d7e6f5"
_RESOLVE = re.compile(r"/(?P<name>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_INFO = re.compile(r"/api/models/(?P<name>[\w.-]+/[\w.-]+)(?:/revision/(?P<revision>[^/?]+))?")


@dataclass
class Hub:
    """One repository, of a folder's files.

    Attributes:
        folder: The files.
        url: For HF_ENDPOINT.
        name: `owner/name`.
        revisions: What the repository answers to.
        token: The token that it wants. None: none.
        announce: Changes what is announced of a file.
        content: Changes what is sent of a file.
        asked: Paths of the files that were sent.
    """

    folder: Path
    url: str = ""
    name: str = "owner/name"
    revisions: tuple[str, ...] = ("main", COMMIT)
    token: str | None = None
    announce: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda path, entry: entry
    content: Callable[[str, bytes], bytes] = lambda path, content: content
    asked: list[str] = field(default_factory=list)

    def entries(self) -> list[dict[str, Any]]:
        """What the server says of each file."""
        return [self.announce(path, self._entry(path, self.folder / path)) for path in self.paths()]

    def paths(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        )

    def _entry(self, path: str, file: Path) -> dict[str, Any]:
        content = file.read_bytes()
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
        if path.endswith((".safetensors", ".bin")):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return entry


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Hub]:
    """Serve a folder as a repository."""
    hub = Hub(folder, **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, with_body: bool) -> None:
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            if info := _INFO.fullmatch(self.path.split("?")[0]):
                return self._info(info["name"], info["revision"] or "main")
            if file := _RESOLVE.fullmatch(self.path.split("?")[0]):
                return self._file(file["name"], file["revision"], file["path"], with_body)
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _info(self, name: str, revision: str) -> None:
            if name != hub.name:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in hub.revisions:
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            body = {
                "id": name,
                "modelId": name,
                "sha": COMMIT,
                "siblings": hub.entries(),
                "cardData": {"license": "mit"},
                "tags": [],
                "private": False,
                "downloads": 0,
                "likes": 0,
            }
            return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, path: str, with_body: bool) -> None:
            if name != hub.name or path not in hub.paths():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = hub.content(path, (hub.folder / path).read_bytes())
            if with_body:
                hub.asked.append(path)
            etag = hashlib.sha256(content).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
            return self._send(200, content, headers, with_body)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
