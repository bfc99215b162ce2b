"""The processes of `ddpm up`, their devices and addresses."""

from __future__ import annotations

import re
import socket

import pytest

from cli.faults import Fault
from cli.serve import up
from cli.settings import CliSettings


def test_a_port_in_use_is_refused_with_another_to_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Fault, match=re.escape(f"port {port}") + r".*--port \d+"):
            up.check_port("127.0.0.1", port)
    up.check_port("127.0.0.1", port)


def test_a_port_that_the_system_chooses_is_a_fault() -> None:
    with pytest.raises(Fault, match="DDPM_PORT=0"):
        up.check_named_port("127.0.0.1", 0)


@pytest.mark.parametrize("host", ["192.0.2.1", "not a host"])
def test_an_address_that_is_not_ours_is_a_fault(host: str) -> None:
    with pytest.raises(Fault, match=host):
        up.check_port(host, 8000)


@pytest.mark.parametrize(
    ("gpus", "asked", "devices"),
    [
        (0, None, [None]),
        (0, 2, [None, None]),
        (2, None, ["cuda:0", "cuda:1"]),
        (2, 3, ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_workers_spread_over_the_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, asked: int | None, devices: list[str | None]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(up, "gpu_count", lambda: gpus)
    children = up.worker_children(CliSettings(device=None), asked, {"DDPM_REDIS_URL": "unix:///s"})
    assert [child.env.get("DDPM_DEVICE") for child in children] == devices
    assert {child.env["DDPM_REDIS_URL"] for child in children} == {"unix:///s"}


def test_each_mig_instance_has_a_worker_that_sees_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aa, MIG-bb")
    # What CUDA shows a process of them.
    monkeypatch.setattr(up, "gpu_count", lambda: 1)
    for asked, seen in ((None, ["MIG-aa", "MIG-bb"]), (3, ["MIG-aa", "MIG-bb", "MIG-aa"])):
        children = up.worker_children(CliSettings(device=None), asked, {})
        assert [child.env["CUDA_VISIBLE_DEVICES"] for child in children] == seen
        assert {child.env["DDPM_DEVICE"] for child in children} == {"cuda:0"}


def test_a_device_that_the_user_chose_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "gpu_count", lambda: 2)
    (child,) = up.worker_children(CliSettings(device="cpu"), None, {})
    assert "DDPM_DEVICE" not in child.env


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
    ],
)
def test_the_address_that_is_shown_can_be_opened(host: str, url: str) -> None:
    assert up.address(host, 80) == url
