"""The service in real processes, ready to be hit."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from cli.serve import embedded_valkey
from tests.chaos.actors import Actor, CountedWorker, Fleet
from tests.chaos.clients import Clients
from tests.support.folders import write_model


@dataclass(frozen=True)
class ChaosStage:
    """The service and its clients.

    Attributes:
        fleet: The processes.
        clients: Clients of the APIs.
        redis: A client of the store.
        patience_s: Seconds that anything may take.
        say: Called with a line about whatever happens.
    """

    fleet: Fleet
    clients: Clients
    redis: Redis
    patience_s: float
    say: Callable[[str], None]

    def tend_until(
        self, done: Callable[[], bool], run_once: Callable[[], None] = lambda: None
    ) -> None:
        """Keep all processes alive until `done`, and call `run_once` many times a second.

        Raises:
            TimeoutError: It is not done within the patience.
        """
        self.fleet.tend_until(done, self.patience_s, run_once)


@contextmanager
def on_stage(
    folder: Path,
    models: Iterable[str],
    patience_s: float,
    say: Callable[[str], None] = lambda _: None,
    *,
    workers: int = 3,
    apis: int = 2,
) -> Iterator[ChaosStage]:
    """Yield a stage whose processes are started by the first `tend_until`, and end them at the end.

    Args:
        folder: Folder of data and logs. Its path must be short, because a socket lies in it.
        models: Names of the models that are served.
        patience_s: Seconds that anything may take.
        say: Called with a line about whatever happens.
        workers: Worker processes.
        apis: API processes.
    """
    socket_path = folder / "valkey.sock"
    ports = [_free_port() for _ in range(apis)]
    fleet = _fleet(folder, models, socket_path, ports, workers)
    clients = Clients([f"http://127.0.0.1:{port}" for port in ports])
    with Redis(unix_socket_path=str(socket_path)) as redis:
        try:
            yield ChaosStage(fleet, clients, redis, patience_s, say)
        finally:
            clients.close()
            fleet.end()


def _fleet(
    folder: Path, models: Iterable[str], socket_path: Path, ports: Sequence[int], workers: int
) -> Fleet:
    """Make the processes as `ddpm up` does: the same server with the same settings."""
    for name in ("valkey", "models"):
        (folder / name).mkdir()
    write_model(folder / "models", "tiny", analytic=True)
    env = {
        "DDPM_REDIS_URL": embedded_valkey.socket_url(socket_path),
        "DDPM_MODELS_DIR": str(folder / "models"),
        "DDPM_DEVICE": "cpu",
        "DDPM_CACHE_DIR": str(folder / "cache"),
        "DDPM_MODELS": ",".join(models),
    }
    store = embedded_valkey.valkey(folder / "valkey", socket_path, lock_fd=-1).command
    api = [sys.executable, "-m", "cli", "api", "--port"]
    apis = [
        Actor(f"api-{number}", [*api, str(port)], env, folder) for number, port in enumerate(ports)
    ]
    return Fleet(
        Actor("valkey", store, {}, folder),
        apis,
        [CountedWorker(f"worker-{number}", [], env, folder) for number in range(workers)],
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
