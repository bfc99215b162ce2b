"""The service in real processes, ready to be hit."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from redis import Redis

from cli.serve import embedded_valkey
from tests.chaos.actors import Actor, CountedWorker, Fleet
from tests.chaos.clients import CLIENTS_AT_ONCE, Clients
from tests.chaos.jobs import TINY
from tests.support.folders import write_model
from tests.support.proxy import Proxy, proxy
from worker.__main__ import connect


@dataclass(frozen=True)
class ChaosStage:
    """The service and its clients.

    Attributes:
        fleet: The processes.
        clients: Clients of the APIs.
        redis: A client of the store.
        address: The store's one address, behind which its replica may take its place; None if
            there is no replica.
        patience_s: Seconds that anything may take.
        say: Called with a line about whatever happens.
    """

    fleet: Fleet
    clients: Clients
    redis: Redis
    patience_s: float
    say: Callable[[str], None]
    address: Proxy | None = None

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
    owners: Sequence[str] = (),
    slowness: Sequence[float] = (),
    replicated: bool = False,
    redis_url: str = "",
    store_env: Mapping[str, str] | None = None,
    clients_at_once: int = CLIENTS_AT_ONCE,
) -> Iterator[ChaosStage]:
    """Yield a stage whose processes are started by the first `tend_until`, and end them at the end.

    Args:
        folder: Folder of data and logs. Its path must be short, because a socket lies in it.
        models: Names of the models that are served.
        patience_s: Seconds that anything may take.
        say: Called with a line about whatever happens.
        workers: Worker processes.
        apis: API processes.
        owners: Names of the API keys, which are the keys as well; none for an API without keys.
        slowness: Times that steps of each worker take as long as they would.
        replicated: Whether the job store has a replica.
        redis_url: The URL of a job store that somebody else runs; "" for one of the stage's own.
        store_env: The environment of the stage's own job store.
        clients_at_once: Jobs that clients wait for at once.
    """
    for name in ("valkey", "replica", "models"):
        (folder / name).mkdir()
    for seed, name in enumerate(TINY):
        write_model(folder / "models", name, analytic=True, seed=seed)
    with ExitStack() as stack:
        store: Actor | None = _store(folder / "valkey", env=store_env)
        url = embedded_valkey.socket_url(_socket(folder))
        replica, address = None, None
        if redis_url:
            store, url = None, redis_url
        if replicated:
            port, other = _free_port(), _free_port()
            store = _store(folder / "valkey", "--port", str(port))
            follow = ["--port", str(other), "--replicaof", "127.0.0.1", str(port)]
            replica = _store(folder / "replica", *follow, "--repl-diskless-sync-delay", "0")
            address = stack.enter_context(proxy(f"redis://127.0.0.1:{port}"))
            url = address.url
        ports = [_free_port() for _ in range(apis)]
        fleet = Fleet(
            store,
            *_processes(folder, models, url, ports, owners, slowness or [1.0] * workers),
            replica,
        )
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        clients = Clients(urls, owners, clients_at_once)
        redis = stack.enter_context(connect(url))
        try:
            yield ChaosStage(fleet, clients, redis, patience_s, say, address)
        finally:
            clients.close()
            fleet.end()


def _socket(folder: Path) -> Path:
    return folder / "valkey" / "valkey.sock"


def _store(folder: Path, *options: str, env: Mapping[str, str] | None = None) -> Actor:
    """Make a server as `ddpm up` does, with the same settings."""
    command = embedded_valkey.valkey(folder, folder / "valkey.sock", lock_fd=-1).command
    return Actor(folder.name, [*command, *options], env or {}, folder.parent)


def _processes(
    folder: Path,
    models: Iterable[str],
    redis_url: str,
    ports: Sequence[int],
    owners: Sequence[str],
    slowness: Sequence[float],
) -> tuple[list[Actor], list[CountedWorker]]:
    """Make the APIs and the workers as `ddpm up` does."""
    keys = [f"{owner}:{sha256(owner.encode()).hexdigest()}" for owner in owners]
    env = {
        "DDPM_REDIS_URL": redis_url,
        "DDPM_MODELS_DIR": str(folder / "models"),
        "DDPM_DEVICE": "cpu",
        # Left to each stage, it may differ, and the images with it.
        "DDPM_PRECISION": "fp32",
        "DDPM_CACHE_DIR": str(folder / "cache"),
        "DDPM_MODELS": ",".join(models),
        "DDPM_API_KEYS": ",".join(keys),
    }
    api = [sys.executable, "-m", "cli", "api", "--port"]
    apis = [
        Actor(f"api-{number}", [*api, str(port)], env, folder) for number, port in enumerate(ports)
    ]
    workers = [
        CountedWorker(f"worker-{number}", [], env, folder, slowness=each)
        for number, each in enumerate(slowness)
    ]
    return apis, workers


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
