"""A stretch of polls and streams with an API that never answers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from bench.commands.pollers import is_good, run_stretch
from bench.systems.api import Api


@pytest.fixture
def silent() -> Iterator[Api]:
    """An address that takes connections and requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Api(server.getsockname()[1], "", os.getpid())


def test_a_request_without_an_answer_counts_until_the_end(silent: Api) -> None:
    found = run_stretch("polls", silent, ["/", "/"], [], 1)
    later, earlier = sorted(found.latencies_s)
    assert later > 0.49
    assert earlier > 0.99
    assert found.tally.latencies_s == []
    assert not is_good(found)


def test_streams_without_an_event_are_not_good(silent: Api) -> None:
    assert not is_good(run_stretch("streams", silent, [], ["/"], 0.1))


def test_silence_is_good_in_a_stretch_without_answers(silent: Api) -> None:
    assert is_good(run_stretch("idle", silent, [], [], 0.1))
    assert is_good(run_stretch("wait", silent, ["/?wait=60"] * 2, [], 1, answered=False))
