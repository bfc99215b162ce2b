"""`ddpm api`: the API alone, in one process or in several that share its port."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from redis.exceptions import RedisError

from app.access.rate_limit import FILE_BYTES
from app.operation.api_metrics import MULTIPROCESS_DIR
from app.operation.redis_client import connect_in_thread
from app.settings import ApiSettings
from cli.console import say
from cli.faults import Fault
from cli.serve.api_process import serve_alone, shared_port
from cli.serve.child import PATIENCE_S, Child
from cli.serve.supervisor import Stage, Supervisor
from worker.backends.cores import within_core_limits
from worker.jobs.server_check import ClusterMode, server_faults

# -P: Python must not import the `app` or `models` of the folder that the command is called in.
PYTHON = [sys.executable, "-P"]
# Workers on a CPU want the cores too, and one process answers hundreds of requests a second.
_CORES_A_PROCESS = 4
_MOST_BY_DEFAULT = 8
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def serve(
    settings: ApiSettings,
    host: str,
    port: int,
    sockets: Sequence[socket.socket] = (),
    uds: Path | None = None,
) -> int:
    """Run the API until it is stopped, and return the exit status.

    Args:
        settings: What the operator has chosen.
        host: Address to listen on.
        port: Port to listen on.
        sockets: Sockets that listen already, instead. One process serves them.
        uds: Unix socket to listen on, instead. One process serves it.

    Raises:
        Fault: The port or the job store cannot be used.
    """
    count = api_processes(settings)
    if count == 1 or sockets or uds:
        return serve_alone(settings, host, port, sockets, uds)
    _refuse_cluster_mode(str(settings.redis_url))
    with ExitStack() as stack:
        check_port(host, port)
        children, port = api_children(host, port, count, {}, stack, settings.stop_pause_s)
        say(f"{count} API processes on {address(host, port)}")
        return Supervisor([Stage(children)]).run()


def api_processes(settings: ApiSettings) -> int:
    """Return how many processes to run: as set, or by the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return settings.api_processes or processes_for(within_core_limits(cores))


def processes_for(cores: int) -> int:
    """Return how many processes suit so many cores."""
    return max(1, min(_MOST_BY_DEFAULT, cores // _CORES_A_PROCESS))


def api_children(
    host: str,
    port: int,
    count: int,
    env: Mapping[str, str],
    stack: ExitStack,
    stop_pause_s: float = 0.0,
) -> tuple[list[Child], int]:
    """Return the API's processes, and the port that they will listen on.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        count: How many processes share it.
        env: Their environment, besides that of this process.
        stack: Holds the port and the shared memory for as long as they run.
        stop_pause_s: Seconds for which they serve on when they are asked to stop.

    Raises:
        Fault: The port cannot be used.
    """
    patience_s = PATIENCE_S + stop_pause_s
    if count == 1:
        command = [*PYTHON, "-m", "cli", "api", "--host", host, "--port", str(port)]
        # Of several processes, only a supervisor starts more.
        child = Child("api", command, {**env, "DDPM_API_PROCESSES": "1"}, patience_s=patience_s)
        return [child], port
    try:
        held = stack.enter_context(shared_port(host, port))
    except OSError as error:
        raise _unusable(host, port, error) from None
    port = held.getsockname()[1]
    limits = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    limits.truncate(FILE_BYTES)
    fd = limits.fileno()
    command = [*PYTHON, "-m", "cli.serve.api_process", host, str(port), str(fd)]
    counts = stack.enter_context(tempfile.TemporaryDirectory(prefix="ddpm-metrics-"))
    env = {**env, MULTIPROCESS_DIR: counts}
    children = [
        Child(f"api-{n}", command, env, keep_fds=(fd,), patience_s=patience_s) for n in range(count)
    ]
    return children, port


def check_port(host: str, port: int) -> None:
    """Raise Fault, with the remedy, for a port that cannot be listened on."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise _unusable(host, port, error) from None


def address(host: str, port: int) -> str:
    """Return the URL under which a client on this machine reaches the service."""
    reachable = _ANY_HOST.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _refuse_cluster_mode(redis_url: str) -> None:
    """Look at the job store once: each process would refuse it, and be started again."""
    with closing(connect_in_thread(redis_url)) as redis, suppress(RedisError):
        try:
            server_faults(redis)
        except ClusterMode as refused:
            raise Fault(str(refused)) from None


def _unusable(host: str, port: int, error: OSError) -> Fault:
    other = port + 1 if 1024 <= port < 65535 else 8000
    remedy = f"stop what uses it, or choose another: --port {other} (make serve PORT={other})"
    return Fault(f"cannot listen on {host} port {port}: {error.strerror}; {remedy}")
