"""A server for these tests alone: an API's reaper would be quicker than a test that reaps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.valkey import valkey_server


@pytest.fixture(scope="session")
def shared_valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with valkey_server(tmp_path_factory.mktemp("valkey"), save="", appendonly="no") as server:
        yield f"{server.connection_url}/0"
