"""A stretch of polls and streams before an API that says nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from bench.commands.pollers import good, stretch
from bench.systems.api import Api


@pytest.fixture
def silent() -> Iterator[Api]:
    """Takes connections and requests, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Api(server.getsockname()[1], "", os.getpid())


def test_what_is_not_answered_has_taken_until_the_end(silent: Api):
    found = stretch("polls", silent, ["/", "/"], [], 1)
    assert sorted(found.latencies_s) == pytest.approx([0.5, 1], abs=0.2)
    assert found.tally.latencies_s == []
    assert not good(found)


def test_streams_without_an_event_are_not_good(silent: Api):
    assert not good(stretch("streams", silent, [], ["/"], 0.1))


def test_where_nothing_is_to_be_answered_silence_is_good(silent: Api):
    assert good(stretch("idle", silent, [], [], 0.1))
    assert good(stretch("wait", silent, ["/?wait=60"] * 2, [], 1, answered=False))
