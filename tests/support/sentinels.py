"""A primary, a replica and three Sentinels that watch them, as processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.support.processes import eventually
from tests.support.stores import binary_of, free_port

SERVICE = "main"
PASSWORD = "server/p@ss"
SENTINEL_PASSWORD = "watch&see"
_IN_URL = "server%2Fp%40ss"
_SENTINEL_IN_URL = "watch%26see"


class WatchedPrimary:
    """Servers that Sentinels hand over from one to the other.

    Attributes:
        url: of the service, as DDPM_REDIS_URL has it.
    """

    def __init__(self, server: str, folder: Path) -> None:
        """Start all of them.

        Args:
            server: `valkey` or `redis`.
            folder: an empty one for their files.

        Raises:
            NoSuchServer: this machine has no such server.
        """
        self._server, self._folder, self._binary = server, folder, binary_of(server)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ports = [free_port() for _ in range(2)]
        self._start_server(self.ports[0])
        self._start_server(self.ports[1], "--replicaof", "127.0.0.1", str(self.ports[0]))
        for port in self.ports:
            eventually(lambda port=port: _answers(self.client(port)), 20, "the server answers")
        sentinels = [self._start_sentinel() for _ in range(3)]
        self._sentinel = Redis(port=sentinels[0], password=SENTINEL_PASSWORD)
        hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels)
        self.url = (
            f"redis+sentinel://:{_IN_URL}@{hosts}/{SERVICE}/0?sentinel_password={_SENTINEL_IN_URL}"
        )
        eventually(self._is_complete, 60, "the Sentinels know each other and the replica")

    @property
    def primary(self) -> int:
        """The port of the server that the Sentinels name."""
        return int(self._sentinel.sentinel_get_master_addr_by_name(SERVICE)[1])

    def client(self, port: int) -> Redis:
        """Return a client of one of the servers."""
        return Redis(port=port, password=PASSWORD, socket_timeout=5)

    def kill(self, port: int) -> None:
        """Kill a server."""
        process = self._processes.pop(port)
        process.kill()
        process.wait()

    def start_again(self, port: int) -> None:
        """Start a server that was killed, as what it was before."""
        self._start_server(port)

    def close(self) -> None:
        """Kill all processes."""
        self._sentinel.close()
        for port in list(self._processes):
            self.kill(port)

    def _is_complete(self) -> bool:
        try:
            state = self._sentinel.sentinel_master(SERVICE)
        except RedisError:
            return False
        replica = self.client(self.ports[1]).info("replication")
        return (
            state["num-other-sentinels"] == 2
            and state["num-slaves"] == 1
            and replica.get("master_link_status") == "up"
        )

    def _start_server(self, port: int, *options: str) -> None:
        home = self._folder / str(port)
        home.mkdir(exist_ok=True)
        passwords = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
        durable = ("--save", "", "--appendonly", "yes", "--dir", str(home))
        command = [f"{self._server}-server", "--port", str(port), *passwords, *durable, *options]
        self._run(port, command)

    def _start_sentinel(self) -> int:
        port = free_port()
        file = self._folder / f"sentinel-{port}.conf"
        file.write_text(
            f"port {port}\ndir {self._folder}\n"
            f'requirepass "{SENTINEL_PASSWORD}"\nsentinel sentinel-pass "{SENTINEL_PASSWORD}"\n'
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 2\n"
            f'sentinel auth-pass {SERVICE} "{PASSWORD}"\n'
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 6000\n"
        )
        self._run(port, [f"{self._server}-sentinel", str(file), "--sentinel"])
        return port

    def _run(self, port: int, command: list[str]) -> None:
        with (self._folder / f"{port}.log").open("ab") as log:
            self._processes[port] = subprocess.Popen(
                command, executable=self._binary, stdout=log, stderr=log
            )


@contextmanager
def watched(server: str, folder: Path) -> Iterator[WatchedPrimary]:
    """Run the servers and the Sentinels while the block runs."""
    servers = WatchedPrimary(server, folder)
    try:
        yield servers
    finally:
        servers.close()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
