"""How many API processes there are, and the port that they share."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack

import pytest

from app.settings import ApiSettings
from cli.faults import Fault
from cli.serve.api import api_children, api_processes, check_port, processes_for
from cli.serve.api_process import shared_port


@pytest.mark.parametrize(
    ("cores", "processes"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (256, 8)]
)
def test_there_is_a_process_for_each_four_cores_and_eight_at_most(
    cores: int, processes: int
) -> None:
    assert processes_for(cores) == processes


def test_the_setting_says_how_many_processes_there_are() -> None:
    assert api_processes(ApiSettings(api_processes=3)) == 3
    assert 1 <= api_processes(ApiSettings()) <= 8


def test_a_single_process_starts_no_others() -> None:
    with ExitStack() as stack:
        [child], port = api_children("127.0.0.1", 8123, 1, {"A": "b"}, stack)
    assert (child.name, port) == ("api", 8123)
    assert child.env == {"A": "b", "DDPM_API_PROCESSES": "1"}


def test_a_port_on_which_processes_listen_is_refused_to_others() -> None:
    with ExitStack() as stack:
        children, port = api_children("127.0.0.1", 0, 2, {}, stack)
        assert [child.name for child in children] == ["api-0", "api-1"]
        stack.enter_context(shared_port("127.0.0.1", port)).listen()
        with pytest.raises(Fault, match=re.escape(f"port {port}")):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_socket_that_holds_the_port_gets_no_connection() -> None:
    with shared_port("127.0.0.1", 0) as holds:
        port = holds.getsockname()[1]
        with shared_port("127.0.0.1", port) as serves:
            serves.listen(64)
            serves.settimeout(20)
            for _ in range(32):
                with socket.create_connection(("127.0.0.1", port), timeout=20):
                    serves.accept()[0].close()
