"""`ddpm up`: the whole service on one machine. Which processes it has, and their settings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from cli.faults import Fault
from cli.serve import data_dir, embedded_valkey
from cli.serve.child import Child
from cli.serve.supervisor import Stage, Supervisor
from cli.serve.wait_until_ready import WaitUntilReady
from cli.settings import CliSettings, read

# -P: Python must not import the `app` or `models` of the folder that the command is called in.
_PYTHON = [sys.executable, "-P"]
# NVIDIA, the same under WSL, AMD.
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def up(host: str, port: int, workers: int | None, keyed: bool) -> int:
    """Run the service until it is stopped, and return the exit status.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        workers: Worker processes; None is one a GPU, else one.
        keyed: Whether clients need a key, which the banner then shows.

    Raises:
        Fault: The port, the data folder or a setting cannot be used.
    """
    settings = read(CliSettings)
    with ExitStack() as stack:
        stages: list[Stage] = []
        if settings.redis_url:
            url = settings.redis_url
        else:
            stages, url = embedded_server(settings, stack)
        check_port(host, port)
        env = {
            "DDPM_REDIS_URL": url,
            "DDPM_MODELS_DIR": str(settings.models_root.absolute()),
            "DDPM_CACHE_DIR": str(settings.cache_root.absolute()),
        }
        api = Child("api", [*_PYTHON, "-m", "cli", "api", "--host", host, "--port", str(port)], env)
        stages = [*stages, Stage([api]), Stage(worker_children(settings, workers, env))]
        return Supervisor(stages, WaitUntilReady(address(host, port), keyed)).run()


def embedded_server(settings: CliSettings, stack: ExitStack) -> tuple[list[Stage], str]:
    """Return the stage that all others stand on, and its URL."""
    home = data_dir.valkey_folder(settings.data_dir)
    lock_fd = data_dir.lock(home)
    stack.callback(os.close, lock_fd)
    socket_path = stack.enter_context(embedded_valkey.socket_path(home))
    url = embedded_valkey.socket_url(socket_path)
    server = embedded_valkey.valkey(home, socket_path, lock_fd, settings.redis_maxmemory)
    return [Stage([server], lambda: embedded_valkey.answers(url))], url


def check_port(host: str, port: int) -> None:
    """Raise Fault, with the remedy, for a port that cannot be listened on."""
    if port == 0:
        raise Fault(
            "DDPM_PORT=0 leaves the choice of the port to the system, and clients would not know "
            "it; name one, such as 8000"
        )
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        other = port + 1 if 1024 <= port < 65535 else 8000
        remedy = f"stop what uses it, or choose another: --port {other} (make serve PORT={other})"
        raise Fault(f"cannot listen on {host} port {port}: {error.strerror}; {remedy}") from None


def worker_children(settings: CliSettings, asked: int | None, env: dict[str, str]) -> list[Child]:
    """Return one worker a GPU, else one. A device that the user chose is every worker's."""
    gpus = 0 if settings.device else gpu_count()
    children = []
    for index in range(asked or max(1, gpus)):
        device = {"DDPM_DEVICE": f"cuda:{index % gpus}"} if gpus else {}
        children.append(Child(f"worker-{index}", [*_PYTHON, "-m", "cli", "worker"], env | device))
    return children


def gpu_count() -> int:
    """Count the GPUs as PyTorch does, which respects CUDA_VISIBLE_DEVICES.

    A child process asks PyTorch, and only where there is a driver.
    """
    if not any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return 0
    question = [*_PYTHON, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(question, capture_output=True, text=True, check=True).stdout)


def address(host: str, port: int) -> str:
    """Return the URL under which a client on this machine reaches the service."""
    reachable = _ANY_HOST.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
