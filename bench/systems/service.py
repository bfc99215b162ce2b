"""The whole service, as `make serve` starts it: Valkey, the API and one worker, each a process, reached over HTTP."""

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

Asked = Literal["fp32", "bf16", "auto"]

_READY_WITHIN_S, _STOP_WITHIN_S = 120.0, 30.0


class ServiceClient:
    """May be used by many threads at once."""

    def __init__(self, url: str, model: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.Client(base_url=url, timeout=90, limits=limits, trust_env=False)
        self._model = model

    def post(self, count: int, steps: int, **options: Any) -> str:
        """A job's id."""
        answer = self._http.post(
            "/v1/jobs", json={"model": self._model, "count": count, "steps": steps, **options}
        )
        return str(answer.raise_for_status().json()["id"])

    def job(self, job: str, wait_s: float = 0) -> dict[str, Any]:
        """As it is now, or at its next change of state."""
        answer = self._http.get(f"/v1/jobs/{job}", params={"wait": wait_s})
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def finished(self, job: str) -> dict[str, Any]:
        """The job, as soon as it has ended; RuntimeError unless it finished."""
        while (found := self.job(job, wait_s=60))["state"] in ("queued", "running"):
            pass
        if found["state"] != "finished":
            raise RuntimeError(
                f"job {job} is {found['state']}: {found['error']}; see the service's log"
            )
        return found

    def pngs(self, job: str) -> list[bytes]:
        """All of its images, once it has finished."""
        finished = self.finished(job)
        return (
            self.pngs_in_archive(finished) if finished["count"] > 1 else self.pngs_singly(finished)
        )

    def pngs_in_archive(self, job: dict[str, Any]) -> list[bytes]:
        """By one request."""
        with ZipFile(
            io.BytesIO(self._http.get(job["links"]["archive"]).raise_for_status().content)
        ) as archive:
            return [archive.read(name) for name in archive.namelist()]

    def pngs_singly(self, job: dict[str, Any]) -> list[bytes]:
        """By a request for each, one after the other."""
        return [self._http.get(image["url"]).raise_for_status().content for image in job["images"]]

    def precision(self) -> str:
        """What the worker computes in, as a picture of it says."""
        (png,) = self.pngs(self.post(1, 1))
        with Image.open(io.BytesIO(png)) as picture:
            return str(json.loads(picture.info["ddpm"])["precision"])

    def cancel(self, job: str) -> None:
        self._http.post(f"/v1/jobs/{job}/cancel").raise_for_status()

    def jobs(self, state: str) -> list[str]:
        """Ids of the jobs in a state, the newest hundred."""
        answer = self._http.get("/v1/jobs", params={"state": state, "limit": 100})
        return [job["id"] for job in answer.raise_for_status().json()["jobs"]]

    def is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


@contextmanager
def service(folder: Path, model: Path, device: str, precision: Asked) -> Iterator[ServiceClient]:
    """Ready for work; stopped at the end. `folder` holds its data, and its calibration for the next start."""
    port, log, name = _free_port(), folder / "log", read_card(model).name
    mine = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_")}
    settings = {"DDPM_DATA_DIR": str(folder), "DDPM_DEVICE": device, "DDPM_PRECISION": precision}
    settings |= {"DDPM_MODELS_DIR": str(model.resolve().parent), "DDPM_MODELS": name}
    command = [sys.executable, "-m", "cli", "up", "--port", str(port), "--workers", "1"]
    with log.open("ab") as out:
        process = subprocess.Popen(command, env=mine | settings, stdout=out, stderr=out)
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
    """For a service, beside the results: a folder for temporary files may be in memory, and a queue belongs on a disk."""
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
            raise RuntimeError(
                f"the service is not ready; its log ends with\n{log.read_text()[-2000:]}"
            )
        time.sleep(0.2)
