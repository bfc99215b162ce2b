"""`ddpm keys`, and whom `ddpm api` and `ddpm up` would let in."""

from __future__ import annotations

from hashlib import sha256

import pytest
from typer.testing import CliRunner

from app.http.server import Server
from app.webhooks.signature import owner_secret, secret_text
from cli.main import app

HASH = sha256(b"secret").hexdigest()


def test_a_new_key_is_printed_once_with_its_entry() -> None:
    result = CliRunner().invoke(app, ["keys", "new", "ann"])
    (_, key), (_, entry) = (line.split() for line in result.stdout.splitlines())
    assert entry == f"ann:{sha256(key.encode()).hexdigest()}"
    assert "DDPM_API_KEYS" in result.stderr


def test_a_name_that_cannot_be_one_gets_no_key() -> None:
    result = CliRunner().invoke(app, ["keys", "new", "a:b"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "use 1 to 64 letters" in result.stderr


@pytest.mark.parametrize("command", ["api", "up"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "some-name"])
def test_an_api_without_keys_starts_on_loopback_alone(
    monkeypatch: pytest.MonkeyPatch, command: str, host: str
) -> None:
    monkeypatch.delenv("DDPM_API_KEYS", raising=False)
    monkeypatch.delenv("DDPM_ANONYMOUS_HOSTS", raising=False)
    result = CliRunner().invoke(app, [command, "--host", host])
    assert result.exit_code == 1
    assert f"'{host}'" in result.stderr
    for remedy in ("DDPM_API_KEYS", "`ddpm keys new NAME`", "DDPM_ANONYMOUS_HOSTS"):
        assert remedy in result.stderr


@pytest.mark.parametrize(
    "publish", ["0.0.0.0:8000", "8000", "[::]:8000", "192.168.0.7:80", ":8000"]
)
@pytest.mark.parametrize(
    "hosts", ["", "localhost", "localhost,", "Localhost", "localhost,127.0.0.1", " ::1 , localhost"]
)
def test_a_container_without_keys_starts_on_no_port_that_is_published_for_others(
    publish: str, hosts: str
) -> None:
    environment = {"DDPM_PUBLISH": publish, "DDPM_ANONYMOUS_HOSTS": hosts}
    result = CliRunner().invoke(app, ["api"], env=environment)
    assert result.exit_code == 1
    assert f"published on {publish}" in result.stderr
    for remedy in ("DDPM_API_KEYS", "DDPM_PUBLISH", "DDPM_ANONYMOUS_HOSTS"):
        assert remedy in result.stderr


@pytest.mark.parametrize("command", ["api", "up"])
def test_a_bad_entry_refuses_to_start_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("DDPM_API_KEYS", f"ann:{HASH},bob=secret")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert "DDPM_API_KEYS: entry 2 is not NAME:SHA256" in result.stderr
    assert "secret" not in result.stderr
    assert HASH not in result.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"DDPM_API_KEYS": f"ann:{HASH}", "DDPM_PUBLISH": "0.0.0.0:80"},
        {"DDPM_ANONYMOUS_HOSTS": "gpu-box", "DDPM_PUBLISH": "80"},
        {"DDPM_ANONYMOUS_HOSTS": "localhost", "DDPM_PUBLISH": "[::1]:80"},
    ],
    ids=["keys", "names", "loopback"],
)
def test_an_api_with_keys_or_names_starts_anywhere(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    started: list[str] = []

    def run(server: Server, sockets: None) -> None:
        assert sockets is None
        server.started = True
        started.append(server.config.host)

    monkeypatch.setattr(Server, "run", run)
    monkeypatch.setenv("DDPM_API_PROCESSES", "1")
    result = CliRunner().invoke(app, ["api", "--host", "0.0.0.0"], env=environment)
    assert (result.exit_code, started) == (0, ["0.0.0.0"]), result.stderr


def test_an_owners_webhook_secret_is_printed_and_a_name_that_is_nobodys_is_not() -> None:
    environment = {"DDPM_WEBHOOK_SECRET": "s" * 32, "DDPM_API_KEYS": f"ann:{HASH}"}
    result = CliRunner().invoke(app, ["keys", "webhook-secret", "ann"], env=environment)
    assert result.stdout == secret_text(owner_secret("s" * 32, "ann")) + "\n"
    result = CliRunner().invoke(app, ["keys", "webhook-secret", "anne"], env=environment)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'anne' is nobody's name" in result.stderr
    assert "use one of: ann" in result.stderr
    result = CliRunner().invoke(
        app, ["keys", "webhook-secret", "local"], env={"DDPM_WEBHOOK_SECRET": "s" * 32}
    )
    assert result.stdout.startswith("whsec_")


@pytest.mark.parametrize("command", [["api"], ["keys", "webhook-secret", "local"]])
def test_a_webhook_secret_that_is_short_is_refused_without_showing_it(command: list[str]) -> None:
    result = CliRunner().invoke(app, command, env={"DDPM_WEBHOOK_SECRET": "too-short"})
    assert result.exit_code == 1
    assert "DDPM_WEBHOOK_SECRET=***" in result.stderr
    assert "too-short" not in result.stderr


def test_a_webhook_secret_that_is_not_set_is_a_fault() -> None:
    result = CliRunner().invoke(app, ["keys", "webhook-secret", "local"])
    assert result.exit_code == 1
    assert "openssl rand -hex 32" in result.stderr
