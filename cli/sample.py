"""`ddpm sample`: a client of the service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cli.faults import Fault
from cli.problem import detail

CANCELLED = 130  # as a shell reports Ctrl-C
_POLL_S = 0.2


def sample(url: str, request: Mapping[str, object], out: Path) -> int:
    """Post, wait, save; the exit status."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"the folder {out} cannot be made ({error.strerror}); name another with --out") from None
    with httpx.Client(base_url=url, timeout=30) as http:
        client = Client(http)
        job = client.call("POST", "/v1/jobs", json=request).json()
        try:
            saved = _follow(client, job, out)
        except KeyboardInterrupt:
            client.call("POST", f"/v1/jobs/{job['id']}/cancel")
            typer.echo(f"cancelled job {job['id']}; the images finished until then are in {out}", err=True)
            return CANCELLED
    typer.echo(f"{saved} images in {out}, seed {job['seed']}")
    return 0


class Client:
    """HTTP whose failures are Faults with the service's own words."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.ConnectError:
            raise Fault(f"no answer from {self._http.base_url}; start the service with `make serve`, or give its --url") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Fault(f"{self._http.base_url}: {error or type(error).__name__}; try again") from None
        if answer.is_error:
            raise Fault(detail(answer))
        return answer


def _follow(client: Client, job: dict[str, Any], out: Path) -> int:
    """Save every image as soon as it is finished, until the job has ended; their number."""
    saved: set[int] = set()
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[images]}")
    with Progress(*columns) as progress:
        task = progress.add_task(job["state"], total=1.0, images="")
        while True:
            done = job["progress"]
            progress.update(task, description=job["state"], completed=done["fraction"], images=f"{done['images_done']} images")
            _save(client, job, out, saved)
            if job["state"] not in ("queued", "running"):
                break
            job = _next(client, job)
    if job["state"] != "finished":
        reason = (job["error"] or {}).get("message", "by another's request")
        raise Fault(f"job {job['id']} {job['state']}: {reason}")
    return len(saved)


def _next(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """The job a moment later, or at once where its state changes."""
    later: dict[str, Any] = client.call("GET", f"/v1/jobs/{job['id']}", params={"wait": _POLL_S}).json()
    return later


def _save(client: Client, job: dict[str, Any], out: Path, saved: set[int]) -> None:
    for image in job["images"]:
        if image["state"] == "finished" and image["index"] not in saved:
            path = out / f"{job['seed']}-{image['index']}.png"
            path.write_bytes(client.call("GET", image["url"]).content)
            saved.add(image["index"])
