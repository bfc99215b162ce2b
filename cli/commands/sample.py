"""`ddpm sample`: a client of the service that posts a job and saves its images."""

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

# Exit status, as a shell reports Ctrl-C.
CANCELLED = 130
# The longest that a poll waits for a change of state.
_POLL_S = 0.2


class NotSaved(Fault):
    """An image that this machine cannot store."""


def sample(url: str, key: str | None, request: Mapping[str, object], out: Path) -> int:
    """Post a job, wait for it and save its images. Ctrl-C cancels the job.

    Args:
        url: Base URL of the service.
        key: API key; None where the service wants none.
        request: Body of the post.
        out: Folder for the images.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        Fault: The key or the folder cannot be used, the service does not answer or refuses, the
            job did not finish, or an image could not be saved.
    """
    if key and not (key.isascii() and key.isprintable()):
        raise Fault(
            "the key holds what no HTTP header can; correct --key or DDPM_KEY, "
            "which `ddpm keys new` makes of ASCII letters"
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
        # The key makes it one job, however often it is sent.
        post: dict[str, Any] = {"json": request, "headers": {"Idempotency-Key": str(uuid4())}}
        try:
            job = read_job(client.with_retry("POST", "/v1/jobs", **post))
        except KeyboardInterrupt:
            return _cancel_unanswered(client, post)
        try:
            return _save_all(client, job, out)
        except Fault as fault:
            command = f"curl {url.rstrip('/')}/v1/jobs/{job['id']}"
            raise Fault(f"{fault} (look at job {job['id']} with `{command}`)") from None


def _cancel_unanswered(client: PatientClient, post: Mapping[str, Any]) -> int:
    """Cancel the job of a post that was not answered yet, and return the exit status.

    The service may have accepted it. The same post finds that job, or makes one to be cancelled.
    """
    try:
        job = read_job(client.call("POST", "/v1/jobs", timeout=LEAVING_S, **post))
    except RateLimited:
        # No job is there: the service looks for one before it looks at the queue.
        return CANCELLED
    except Fault as fault:
        raise Fault(
            f"a job may have been posted, and may go on, because asking for it failed: {fault}"
        ) from None
    typer.echo(f"job {job['id']} is {_cancel(client, job)['state']}", err=True)
    return CANCELLED


def _save_all(client: PatientClient, job: dict[str, Any], out: Path) -> int:
    """Save the job's images until it has ended, and return the exit status.

    The job is cancelled after Ctrl-C, and when an image cannot be saved.
    """
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
        raise Fault(f"{fault}; {_cancel_outcome(client, job)}") from None
    if lost := job["count"] - len(saved):
        raise Fault(
            f"{lost} of the job's {job['count']} images have expired and could not be saved; "
            f"the same options with --seed {job['seed']} draw the same again"
        )
    typer.echo(f"{len(saved)} images in {out}, seed {job['seed']}")
    return 0


def _cancel(client: PatientClient, job: dict[str, Any]) -> dict[str, Any]:
    """Cancel the job, and return it as the service answers: cancelled, or ended before.

    Raises:
        Fault: The service did not answer, so the job may go on.
    """
    try:
        return read_job(client.with_retry("POST", f"/v1/jobs/{job['id']}/cancel", LEAVING_S))
    except Fault as fault:
        raise Fault(
            f"job {job['id']} may go on, because it could not be cancelled: {fault}"
        ) from None


def _cancel_outcome(client: PatientClient, job: dict[str, Any]) -> str:
    """Cancel the job, and describe the outcome.

    It does not raise: a failure to cancel must not hide why it was tried.
    """
    try:
        return f"job {job['id']} is {_cancel(client, job)['state']}"
    except Fault as fault:
        return str(fault)


def _follow(client: PatientClient, job: dict[str, Any], out: Path, saved: set[int]) -> None:
    """Save every image as soon as it is finished, until the job has ended.

    Args:
        client: Where the job is.
        job: The job as it was last read.
        out: Folder for the images.
        saved: Indices of the images that are saved; those that are saved here are added.

    Raises:
        Fault: The job failed or was cancelled, or the service does not answer.
        NotSaved: An image cannot be saved.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[images]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(job["state"], total=1.0, images="")
        while True:
            progress.update(
                task,
                description=job["state"],
                completed=job["progress"]["fraction"],
                images=f"{job['progress']['images_done']} images",
            )
            _save(client, job, out, saved)
            if job["state"] not in ("queued", "running"):
                break
            job = _poll(client, job)
    if job["state"] != "finished":
        reason = (job["error"] or {}).get("message", "by another's request")
        raise Fault(f"job {job['id']} {job['state']}: {reason}")


def _poll(client: PatientClient, job: dict[str, Any]) -> dict[str, Any]:
    """Return the job a moment later, or sooner if its state changes."""
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
            f"{path} cannot be saved ({error.strerror}); make room for it, "
            "or name another folder with --out"
        ) from None
