"""`ddpm up`: the whole service on one machine. Which processes it has, and their settings."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

from app.settings import ApiSettings
from cli.faults import Fault
from cli.serve import data_dir, embedded_valkey
from cli.serve.api import PYTHON, address, api_children, check_port
from cli.serve.child import Child
from cli.serve.supervisor import Stage, Supervisor
from cli.serve.wait_until_ready import WaitUntilReady
from cli.settings import CliSettings, read

# NVIDIA, the same under WSL, AMD.
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
# A worker ends itself when it has not stopped for 10 s and ten of its steps, which may be long.
_WORKER_STOPS_S = 300.0


def up(host: str, port: int, processes: int, workers: int | None, keyed: bool) -> int:
    """Run the service until it is stopped, and return the exit status.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        processes: API processes.
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
        check_named_port(host, port)
        env = {
            "DDPM_REDIS_URL": url,
            "DDPM_MODELS_DIR": str(settings.models_root.absolute()),
            "DDPM_CACHE_DIR": str(settings.cache_root.absolute()),
        }
        env_of_api = env | {"DDPM_SUPERVISOR": "up"}
        pause_s = read(ApiSettings).stop_pause_s
        apis, _ = api_children(host, port, processes, env_of_api, stack, pause_s)
        stages = [*stages, Stage(apis), Stage(worker_children(settings, workers, env))]
        return Supervisor(stages, WaitUntilReady(address(host, port), keyed)).run()


def embedded_server(settings: CliSettings, stack: ExitStack) -> tuple[list[Stage], str]:
    """Return the stage that all others stand on, and its URL."""
    home = data_dir.valkey_folder(settings.data_dir)
    lock_fd = data_dir.lock(home)
    stack.callback(os.close, lock_fd)
    socket_path = stack.enter_context(embedded_valkey.socket_path(home))
    url = embedded_valkey.socket_url(socket_path)
    server = embedded_valkey.valkey(home, socket_path, lock_fd, settings.redis_maxmemory)
    guard = embedded_valkey.guard(home, socket_path, settings.redis_maxmemory)
    stack.enter_context(guard.running())
    return [Stage([server], lambda: embedded_valkey.answers(url))], url


def check_named_port(host: str, port: int) -> None:
    """Raise Fault, with the remedy, for a port that cannot be listened on, or is not named."""
    if port == 0:
        raise Fault(
            "DDPM_PORT=0 leaves the choice of the port to the system, and clients would not know "
            "it; name one, such as 8000"
        )
    check_port(host, port)


def worker_children(settings: CliSettings, asked: int | None, env: dict[str, str]) -> list[Child]:
    """Return one worker a GPU, else one. A device that the user chose is every worker's."""
    devices = [] if settings.device else device_settings()
    children = []
    for index in range(asked or max(1, len(devices))):
        device = devices[index % len(devices)] if devices else {}
        command = [*PYTHON, "-m", "cli", "worker"]
        name = f"worker-{index}"
        # In metrics and logs: the same at the next start.
        label = {"DDPM_WORKER_NAME": f"{settings.worker_name or socket.gethostname()}-{index}"}
        children.append(Child(name, command, env | device | label, patience_s=_WORKER_STOPS_S))
    return children


def device_settings() -> list[dict[str, str]]:
    """Return the environment that gives a worker its GPU, for each GPU.

    CUDA shows a process one MIG instance at most, however many CUDA_VISIBLE_DEVICES names. So each
    of their workers sees only its own.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if instances := [name.strip() for name in named if name.strip().startswith("MIG-")]:
        return [{"CUDA_VISIBLE_DEVICES": name, "DDPM_DEVICE": "cuda:0"} for name in instances]
    return [{"DDPM_DEVICE": f"cuda:{index}"} for index in range(gpu_count())]


def gpu_count() -> int:
    """Count the GPUs as PyTorch does, which respects CUDA_VISIBLE_DEVICES.

    A child process asks PyTorch, and only where there is a driver.
    """
    if not any(Path(driver).exists() for driver in _GPU_DRIVERS):
        return 0
    question = [*PYTHON, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(question, capture_output=True, text=True, check=True).stdout)
