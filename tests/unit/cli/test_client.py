"""Errors of the service and the network that `ddpm sample` retries, and those that it reports."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cli.client import PatientClient
from tests.support.clock import SimulatedClock
from tests.support.played import Fault, Played, ddpm_sample, files, job


@pytest.fixture(autouse=True)
def began_s(clock: SimulatedClock) -> float:
    """Return the simulated time at which the test begins."""
    return clock.now_s


def test_a_missing_service_has_the_remedy_to_start_one(
    service: Played, tmp_path: Path, clock: SimulatedClock, began_s: float
) -> None:
    service.url = "http://127.0.0.1:9"
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert "make serve" in result.stderr
    assert clock.now_s == began_s, "it was waited for"


@pytest.mark.parametrize("url", ["nonsense", "ftp://gpu-box", "http://gpu-box:none"])
def test_a_url_that_is_none_is_reported_at_once(
    service: Played, tmp_path: Path, url: str, clock: SimulatedClock, began_s: float
) -> None:
    service.url = url
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("ddpm: ")
    assert clock.now_s == began_s, "it was waited for"


@pytest.mark.parametrize("path", ["/v1/jobs/j", "/v1/jobs/j/images/0"])
def test_a_transient_error_of_the_service_does_not_lose_the_job(
    service: Played, tmp_path: Path, path: str
) -> None:
    service.faults = {path: ["hang up", "503"]}
    service.polls = [job("finished", 2)]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 0, result.output
    assert files(tmp_path) == {"7-0.png": b"PNG 0", "7-1.png": b"PNG 1"}


@pytest.mark.parametrize("fault", ["503, in 1 s", "429, in 1 s"])
def test_a_busy_service_is_left_alone_for_as_long_as_it_asks(
    service: Played, tmp_path: Path, fault: Fault, clock: SimulatedClock, began_s: float
) -> None:
    service.faults = {"/v1/jobs/j": [fault]}
    service.polls = [job("finished", 2)]
    assert ddpm_sample(service, tmp_path).exit_code == 0
    assert clock.now_s - began_s == 1


@pytest.mark.parametrize(
    ("fault", "tries"),
    [("hang up", 10), ("503", 10), ("503, in an hour", 1), ("429, in an hour", 1)],
)
def test_a_service_that_stays_away_ends_with_the_jobs_name_and_how_to_read_it(
    service: Played, tmp_path: Path, fault: Fault, tries: int
) -> None:
    service.faults = {"/v1/jobs/j": [fault] * 99}
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 1
    assert f"look at job j with `curl {service.url}/v1/jobs/j`" in result.stderr
    assert 99 - len(service.faults["/v1/jobs/j"]) == tries


@pytest.mark.parametrize("fault", ["hang up", "503", "429, in 1 s"])
def test_a_job_is_posted_until_it_is_accepted_and_once(
    service: Played, tmp_path: Path, fault: Fault
) -> None:
    service.faults = {"/v1/jobs": [fault]}
    service.polls = [job("finished", 2)]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 0, result.output
    posted, again = service.idempotency_keys
    assert posted == again
    assert posted is not None


def test_every_job_has_a_key_of_its_own(service: Played, tmp_path: Path) -> None:
    for _ in range(2):
        service.polls = [job("finished", 2)]
        ddpm_sample(service, tmp_path)
    assert len(set(service.idempotency_keys)) == 2


def test_a_queue_that_is_full_for_longer_than_patience_is_reported_at_once(
    service: Played, tmp_path: Path
) -> None:
    service.faults = {"/v1/jobs": ["429, in an hour"] * 9}
    result = ddpm_sample(service, tmp_path)
    assert (result.exit_code, len(service.asked)) == (1, 1)
    assert "429 Too Many Requests" in result.stderr


def test_a_service_that_restarts_while_a_job_is_posted_is_waited_for(
    clock: SimulatedClock,
) -> None:
    faults = [
        httpx.ReadError("reset"),
        httpx.ConnectError("refused"),
        httpx.ConnectError("refused"),
    ]

    def restarting(request: httpx.Request) -> httpx.Response:
        if faults:
            raise faults.pop(0)
        return httpx.Response(202)

    with httpx.Client(base_url="http://gpu-box", transport=httpx.MockTransport(restarting)) as http:
        client = PatientClient(http, clock=clock, sleep=clock.pass_s)
        assert client.with_retry("POST", "/v1/jobs").status_code == 202


def test_a_service_that_is_elsewhere_is_reported_with_its_url(
    service: Played, tmp_path: Path
) -> None:
    service.faults = {"/v1/jobs": ["moved"]}
    result = ddpm_sample(service, tmp_path)
    fact = f"{service.url}/v1/jobs redirects to https://gpu-box/v1/jobs"
    assert (result.exit_code, result.stderr) == (1, f"ddpm: {fact}; give --url https://gpu-box\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_does_not_stand_between_this_machine_and_itself(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    service.url = service.url.replace("127.0.0.1", host)
    service.polls = [job("finished", 2)]
    result = ddpm_sample(service, tmp_path)
    assert result.exit_code == 0, result.output


def test_a_proxy_serves_the_rest_of_the_world(
    service: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", service.url)
    service.url = "http://ddpm.invalid"
    service.polls = [job("finished", 2)]
    service.refusal = {"title": "the proxy was asked"}
    assert "the proxy was asked" in ddpm_sample(service, tmp_path).stderr


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/j"])
@pytest.mark.parametrize(("fault", "kind"), [("HTML", "text/html"), ("a list", "application/json")])
def test_an_answer_that_is_no_job_is_reported_in_one_line(
    service: Played, tmp_path: Path, path: str, fault: Fault, kind: str
) -> None:
    service.faults = {path: [fault]}
    result = ddpm_sample(service, tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"answered 200 with {kind} and no job; give the service's --url" in result.stderr


@pytest.mark.parametrize("key", ["ключ", "two\nlines"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    service: Played, tmp_path: Path, key: str
) -> None:
    result = ddpm_sample(service, tmp_path, "--key", key)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "correct --key or DDPM_KEY" in result.stderr
    assert key not in result.stderr
    assert service.asked == []
