"""The whole service as `make serve` starts it, reached over HTTP.

Valkey, the API and one worker are each a process.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from zipfile import ZipFile

import httpx
from PIL import Image

from models.checkpoints.catalog import read_card

PrecisionOption = Literal["fp32", "bf16", "auto"]

_READY_WITHIN_S = 120.0
_STOP_WITHIN_S = 30.0


class ServiceClient:
    """A client of the service for one model. Many threads may use it at once.

    Every method raises httpx.HTTPStatusError for an answer that is an error.
    """

    def __init__(self, url: str, model: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.Client(base_url=url, timeout=90, limits=limits, trust_env=False)
        self._model = model

    def post(self, count: int, steps: int, **options: Any) -> str:
        """Post a job and return its id."""
        request = {"model": self._model, "count": count, "steps": steps, **options}
        answer = self._http.post("/v1/jobs", json=request)
        return str(answer.raise_for_status().json()["id"])

    def job(self, job: str, wait_s: float = 0) -> dict[str, Any]:
        """Return the job as it is now, or at its next change of state within `wait_s` seconds."""
        answer = self._http.get(f"/v1/jobs/{job}", params={"wait": wait_s})
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def finished(self, job: str) -> dict[str, Any]:
        """Return the job as soon as it has ended.

        Raises:
            RuntimeError: It failed or was cancelled.
        """
        while (found := self.job(job, wait_s=60))["state"] in ("queued", "running"):
            pass
        if found["state"] != "finished":
            raise RuntimeError(
                f"job {job} is {found['state']}: {found['error']}; see the service's log"
            )
        return found

    def pngs(self, job: str) -> list[bytes]:
        """Return all images of a job, once it has finished.

        Raises:
            RuntimeError: It failed or was cancelled.
        """
        finished = self.finished(job)
        if finished["count"] > 1:
            return self.pngs_in_archive(finished)
        return self.pngs_singly(finished)

    def pngs_in_archive(self, job: dict[str, Any]) -> list[bytes]:
        """Get all images of a finished job by one request."""
        answer = self._http.get(job["links"]["archive"]).raise_for_status()
        with ZipFile(io.BytesIO(answer.content)) as archive:
            return [archive.read(name) for name in archive.namelist()]

    def pngs_singly(self, job: dict[str, Any]) -> list[bytes]:
        """Get all images of a finished job by a request for each, one after the other."""
        return [self._http.get(image["url"]).raise_for_status().content for image in job["images"]]

    def precision(self) -> str:
        """Return what the worker computes in, by the recipe in an image of it."""
        (png,) = self.pngs(self.post(1, 1))
        with Image.open(io.BytesIO(png)) as picture:
            return str(json.loads(picture.info["ddpm"])["precision"])

    def cancel(self, job: str) -> None:
        """Cancel a job."""
        self._http.post(f"/v1/jobs/{job}/cancel").raise_for_status()

    def jobs(self, state: str) -> list[str]:
        """Return the ids of the newest hundred jobs in a state."""
        answer = self._http.get("/v1/jobs", params={"state": state, "limit": 100})
        return [job["id"] for job in answer.raise_for_status().json()["jobs"]]

    def is_ready(self) -> bool:
        """Return whether the service is ready."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


@contextmanager
def service(
    folder: Path, model: Path, device: str, precision: PrecisionOption
) -> Iterator[ServiceClient]:
    """Start the service, yield a client once it is ready, and stop it at the end.

    Args:
        folder: Folder of its data and log, and of its calibration for the next start.
        model: Folder of the model that it serves.
        device: Device of its worker.
        precision: What the worker computes in.

    Raises:
        RuntimeError: It was not ready within two minutes; the text has the end of its log.
    """
    port = _free_port()
    log = folder / "log"
    name = read_card(model).name
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("DDPM_")}
    settings = {
        "DDPM_DATA_DIR": str(folder),
        "DDPM_DEVICE": device,
        "DDPM_PRECISION": precision,
        "DDPM_MODELS_DIR": str(model.resolve().parent),
        "DDPM_MODELS": name,
    }
    command = [sys.executable, "-m", "cli", "up", "--port", str(port), "--workers", "1"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=inherited | settings, stdout=out, stderr=out)
    client = ServiceClient(f"http://127.0.0.1:{port}", name)
    try:
        _await_ready(client, process, log)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(_STOP_WITHIN_S)


@contextmanager
def data_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder for a service's data, in the folder of results.

    The system's folder of temporary files may be in memory, and a queue belongs on a disk.
    """
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="service-", dir=out) as folder:
        yield Path(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ready(client: ServiceClient, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _READY_WITHIN_S
    while not client.is_ready():
        if process.poll() is not None or time.monotonic() > until:
            tail = log.read_text()[-2000:]
            raise RuntimeError(f"the service is not ready; its log ends with\n{tail}")
        time.sleep(0.2)
