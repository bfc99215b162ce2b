"""A real server for whoever asks for it, one for all tests, emptied before each."""

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

settings.register_profile("tests", deadline=None)  # a deadline measures the machine's other work
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers of all tests that run at once share what the first of them measures, and leave nothing in the user's home."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE_DIR", str(base / "calibrations"))
        yield


@pytest.fixture(scope="session", autouse=True)
def few_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test asks a stranger over TLS; every client of httpx, and every app, would read the world's authorities, in 0.1 s."""
    file = tmp_path_factory.mktemp("certificates") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def shared_valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """For what outlives a test; a test asks for `valkey_url`, or for `redis` too."""
    data = tmp_path_factory.mktemp("valkey")
    with valkey_server(data, save="", appendonly="no") as server:
        yield f"{server.connection_url}/0"


@pytest.fixture
def redis(shared_valkey_url: str) -> Iterator[redis_py.Redis]:
    """A client of a server that holds nothing."""
    with redis_py.Redis.from_url(shared_valkey_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def valkey_url(redis: redis_py.Redis, shared_valkey_url: str) -> str:
    """Of a server that holds nothing."""
    return shared_valkey_url


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_valkey_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.redis)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the card of one model, `tiny`, that is the default."""
    return write_card_of("tiny", tmp_path_factory.mktemp("models"))
