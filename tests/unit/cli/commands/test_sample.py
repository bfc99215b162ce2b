"""`ddpm sample` against a server that plays a prepared job. Retries are in test_client.py."""

from __future__ import annotations

import errno
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.client import PatientClient
from cli.commands import sample as module
from cli.faults import Fault
from tests.support.played import Played, ddpm_sample, files, job

pytestmark = pytest.mark.usefixtures("clock")


def test_the_images_are_saved_under_seed_and_index(service: Played, tmp_path: Path) -> None:
    service.polls = [job("running", 0), job("running", 1), job("finished", 2)]
    result = ddpm_sample(
        service, tmp_path / "out", "--count", "2", "--seed", "7", "--sampler", "ddim"
    )
    assert result.exit_code == 0, result.output
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "7-0.png": b"PNG 0",
        "7-1.png": b"PNG 1",
    }
    assert service.asked[0] == ("POST", "/v1/jobs", {"count": 2, "seed": 7, "sampler": "ddim"})
    assert sum("/images/" in path for _, path, _ in service.asked) == 2


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--label", "cat"], {"label": "cat"}),
        (["--labels", "cat, 3", "--guidance", "2"], {"labels": ["cat", "3"], "guidance": 2.0}),
        (["--start", "4"], {"start": 4}),
        (["--priority", "bulk"], {"priority": "bulk"}),
        (["--webhook", "https://a.example/x"], {"webhook": "https://a.example/x"}),
    ],
)
def test_options_are_posted_as_fields_of_the_job(
    service: Played, tmp_path: Path, options: list[str], body: dict[str, Any]
) -> None:
    service.polls = [job("finished", 2)]
    ddpm_sample(service, tmp_path, "--count", "2", *options)
    assert service.asked[0] == ("POST", "/v1/jobs", {"count": 2} | body)


def test_every_call_carries_the_key_from_the_environment(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.polls = [job("finished", 2)]
    ddpm_sample(service, tmp_path)
    assert service.authorizations == {None}
    service.polls = [job("finished", 2)]
    service.authorizations = set()
    monkeypatch.setenv("DDPM_KEY", "k3y")
    ddpm_sample(service, tmp_path)
    assert service.authorizations == {"Bearer k3y"}


def test_a_refusal_is_reported_in_the_services_words(service: Played, tmp_path: Path) -> None:
    refusal = "count=0 is less than 1; use 1 to 1024."
    service.refusal = {"title": "Invalid request", "detail": refusal}
    result = ddpm_sample(service, tmp_path, "--count", "0")
    assert (result.exit_code, result.stderr) == (1, f"ddpm: {refusal}\n")


@pytest.mark.parametrize("expired", [1, 2])
def test_expired_images_are_reported_with_the_seed_to_draw_them_again(
    service: Played, tmp_path: Path, expired: int
) -> None:
    service.polls = [job("finished", 2, expired=expired)]
    result = ddpm_sample(service, tmp_path)
    assert (result.exit_code, len(files(tmp_path))) == (1, 2 - expired)
    assert f"{expired} of the job's 2 images have expired" in result.stderr
    assert "--seed 7" in result.stderr


def test_a_failed_job_says_why(service: Played, tmp_path: Path) -> None:
    service.polls = [
        job("failed", 0, {"code": "worker_lost", "message": "three workers were lost"})
    ]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "three workers were lost" in result.stderr


def test_a_folder_that_cannot_be_made_is_reported_before_anything_is_drawn(
    service: Played, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = ddpm_sample(service, tmp_path / "file" / "out")
    assert (result.exit_code, "--out" in result.stderr, service.asked) == (1, True, [])


def interrupt_after(polls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C after so many polls, in the next."""
    get = PatientClient.get
    numbers = count()

    def get_or_interrupt(client: PatientClient, path: str, **options: Any) -> httpx.Response:
        if path == "/v1/jobs/j" and next(numbers) == polls:
            raise KeyboardInterrupt
        return get(client, path, **options)

    monkeypatch.setattr(PatientClient, "get", get_or_interrupt)


@pytest.mark.parametrize("state", ["cancelled", "finished"])
def test_ctrl_c_cancels_the_job_and_saves_what_was_finished_by_then(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    # The second answers the cancel.
    service.polls = [job("running", 1), job(state, 2)]
    interrupt_after(1, monkeypatch)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == module.CANCELLED
    assert ("POST", "/v1/jobs/j/cancel", None) in service.asked
    assert files(tmp_path) == {"7-0.png": b"PNG 0", "7-1.png": b"PNG 1"}
    assert f"job j is {state}; its finished images (2) are in {tmp_path}" in result.stderr


def test_ctrl_c_gives_up_soon_on_a_lost_service_and_says_the_job_may_go_on(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.faults = {"/v1/jobs/j/cancel": ["503"] * 99}
    interrupt_after(0, monkeypatch)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "job j may go on" in result.stderr
    tries = [path for _, path, _ in service.asked].count("/v1/jobs/j/cancel")
    assert tries == 5, "any other request is tried ten times"


def interrupt_the_post(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C after the service got the first request, before the command has the answer."""
    call = PatientClient.call
    numbers = count()

    def call_or_interrupt(
        client: PatientClient, method: str, path: str, **options: Any
    ) -> httpx.Response:
        if next(numbers):
            return call(client, method, path, **options)
        with suppress(Fault):
            call(client, method, path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(PatientClient, "call", call_or_interrupt)


def test_ctrl_c_before_the_post_is_answered_cancels_what_was_posted(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.polls = [job("cancelled", 0)]
    interrupt_the_post(monkeypatch)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == module.CANCELLED
    assert "job j is cancelled" in result.stderr
    assert [asked[:2] for asked in service.asked] == [("POST", "/v1/jobs")] * 2 + [
        ("POST", "/v1/jobs/j/cancel")
    ]
    assert len(set(service.idempotency_keys)) == 1


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/j/cancel"])
def test_ctrl_c_before_an_answer_from_a_lost_service_says_what_may_go_on(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    service.faults = {path: ["hang up"] * 9}
    interrupt_the_post(monkeypatch)
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    doubt = "a job may have been posted" if path == "/v1/jobs" else "job j may go on"
    assert doubt in result.stderr


def test_an_image_that_cannot_be_saved_cancels_the_job_and_leaves_no_partial_file(
    service: Played, tmp_path: Path
) -> None:
    (tmp_path / "7-1.png").mkdir()
    # The second answers the cancel.
    service.polls = [job("running", 2), job("cancelled", 2)]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert service.asked[-1] == ("POST", "/v1/jobs/j/cancel", None)
    for part in ("7-1.png cannot be saved (Is a directory)", "--out", "job j is cancelled"):
        assert part in result.stderr
    assert files(tmp_path) == {"7-0.png": b"PNG 0"}


def test_a_full_disk_is_reported_even_if_the_job_cannot_be_cancelled(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path, png: bytes) -> None:
        with path.open("wb") as file:
            file.write(png[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    service.polls = [job("running", 1)]
    service.faults = {"/v1/jobs/j/cancel": ["503"]}
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "job j may go on" in result.stderr
    assert files(tmp_path) == {}
