"""`ddpm sample`: a client of the service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from cli.client import LEAVING_S, PatientClient, RateLimited, is_loopback, read_job
from cli.faults import Fault
from models.checkpoints.atomic_files import write_whole

CANCELLED = 130  # as a shell reports Ctrl-C
_POLL_S = 0.2


def sample(url: str, key: str | None, request: Mapping[str, object], out: Path) -> int:
    """Post, wait, save; the exit status."""
    if key and not (key.isascii() and key.isprintable()):
        raise Fault(
            "the key holds what no HTTP header can; correct --key or DDPM_KEY, which `ddpm keys new` makes of ASCII letters"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(
            f"the folder {out} cannot be made ({error.strerror}); name another with --out"
        ) from None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(
        base_url=url, headers=headers, timeout=30, trust_env=not is_loopback(url)
    ) as http:
        client = PatientClient(http)
        post: dict[str, Any] = {
            "json": request,
            "headers": {"Idempotency-Key": str(uuid4())},
        }  # however often sent, one job
        try:
            job = read_job(client.with_retry("POST", "/v1/jobs", **post))
        except KeyboardInterrupt:
            return _take_back(client, post)
        try:
            return _attend(client, job, out)
        except Fault as fault:
            raise Fault(
                f"{fault} (look at job {job['id']} with `curl {url.rstrip('/')}/v1/jobs/{job['id']}`)"
            ) from None


def _take_back(client: PatientClient, post: Mapping[str, Any]) -> int:
    """What may have been accepted before its answer came: the same post finds the job, or makes one to be cancelled."""
    try:
        job = read_job(client.call("POST", "/v1/jobs", timeout=LEAVING_S, **post))
    except RateLimited:  # a job that is there is found before the queue is looked at
        return CANCELLED
    except Fault as fault:
        raise Fault(
            f"a job may have been posted, and may go on, because asking for it failed: {fault}"
        ) from None
    typer.echo(f"job {job['id']} is {_cancel(client, job)['state']}", err=True)
    return CANCELLED


class NotSaved(Fault):
    """An image that this machine cannot store."""


def _attend(client: PatientClient, job: dict[str, Any], out: Path) -> int:
    """Until the job has ended, or has been cancelled because nobody wants its images or nothing can hold them."""
    saved: set[int] = set()
    try:
        _follow(client, job, out, saved)
    except KeyboardInterrupt:
        job = _cancel(client, job)
        _save(client, job, out, saved)
        typer.echo(
            f"job {job['id']} is {job['state']}; its finished images ({len(saved)}) are in {out}",
            err=True,
        )
        return CANCELLED
    except NotSaved as fault:
        raise Fault(f"{fault}; {_fate(client, job)}") from None
    if lost := job["count"] - len(saved):
        raise Fault(
            f"{lost} of the job's {job['count']} images have expired and could not be saved; the same options with "
            f"--seed {job['seed']} draw the same again"
        )
    typer.echo(f"{len(saved)} images in {out}, seed {job['seed']}")
    return 0


def _cancel(client: PatientClient, job: dict[str, Any]) -> dict[str, Any]:
    """The job as the service answers: cancelled, or ended before."""
    try:
        return read_job(client.with_retry("POST", f"/v1/jobs/{job['id']}/cancel", LEAVING_S))
    except Fault as fault:
        raise Fault(
            f"job {job['id']} may go on, because it could not be cancelled: {fault}"
        ) from None


def _fate(client: PatientClient, job: dict[str, Any]) -> str:
    """What cancelling has made of the job; a failure to cancel must not hide why it was tried."""
    try:
        return f"job {job['id']} is {_cancel(client, job)['state']}"
    except Fault as fault:
        return str(fault)


def _follow(client: PatientClient, job: dict[str, Any], out: Path, saved: set[int]) -> None:
    """Save every image as soon as it is finished, until the job has ended."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[images]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(job["state"], total=1.0, images="")
        while True:
            done = job["progress"]
            progress.update(
                task,
                description=job["state"],
                completed=done["fraction"],
                images=f"{done['images_done']} images",
            )
            _save(client, job, out, saved)
            if job["state"] not in ("queued", "running"):
                break
            job = _next(client, job)
    if job["state"] != "finished":
        reason = (job["error"] or {}).get("message", "by another's request")
        raise Fault(f"job {job['id']} {job['state']}: {reason}")


def _next(client: PatientClient, job: dict[str, Any]) -> dict[str, Any]:
    """The job a moment later, or at once where its state changes."""
    return read_job(client.get(f"/v1/jobs/{job['id']}", params={"wait": _POLL_S}))


def _save(client: PatientClient, job: dict[str, Any], out: Path, saved: set[int]) -> None:
    for image in job["images"]:
        if image["state"] == "finished" and image["index"] not in saved:
            _write(out / f"{job['seed']}-{image['index']}.png", client.get(image["url"]).content)
            saved.add(image["index"])


def _write(path: Path, png: bytes) -> None:
    try:
        write_whole(path, png)
    except OSError as error:
        raise NotSaved(
            f"{path} cannot be saved ({error.strerror}); make room for it, or name another folder with --out"
        ) from None
