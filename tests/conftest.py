"""A real Valkey for all tests that need one, emptied before each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py
import trustme
from hypothesis import settings

from tests.support.cards import write_card_of
from tests.support.valkey import valkey_server

# A deadline would measure the machine's other work.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give all tests that run at once one folder of calibrations, outside the user's home.

    The first worker measures, and the others use what it found.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE_DIR", str(base / "calibrations"))
        yield


@pytest.fixture(scope="session", autouse=True)
def few_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust a single certificate authority.

    No test connects to strangers over TLS. Every client of httpx, and every app, would read the
    world's authorities, which takes 0.1 s.
    """
    file = tmp_path_factory.mktemp("certificates") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def shared_valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server, for fixtures that outlive a test.

    Tests use `valkey_url`, or `redis` too.
    """
    data = tmp_path_factory.mktemp("valkey")
    with valkey_server(data, save="", appendonly="no") as server:
        yield f"{server.connection_url}/0"


@pytest.fixture
def redis(shared_valkey_url: str) -> Iterator[redis_py.Redis]:
    """A client of a server that holds nothing."""
    with redis_py.Redis.from_url(shared_valkey_url, socket_timeout=60) as client:
        client.flushall()
        yield client


@pytest.fixture
def valkey_url(redis: redis_py.Redis, shared_valkey_url: str) -> str:
    """The URL of a server that holds nothing."""
    return shared_valkey_url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the server."""
    for item in items:
        if "shared_valkey_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.redis)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the card of one model, `tiny`, which is the default."""
    return write_card_of("tiny", tmp_path_factory.mktemp("models"))
