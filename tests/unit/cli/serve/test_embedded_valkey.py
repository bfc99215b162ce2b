"""The embedded Valkey: where it listens, and with which settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from redis import Redis

from cli.serve import data_dir, embedded_valkey
from worker.backends.memory import host_memory_bytes


def test_the_socket_lies_in_the_data_folder() -> None:
    with embedded_valkey.socket_path(Path("/data/valkey")) as path:
        assert path == Path("/data/valkey/valkey.sock")


@pytest.mark.parametrize("name", ["long" * 30, "a space", "key=value"])
def test_a_path_that_no_socket_can_have_is_replaced_by_a_private_one(
    tmp_path: Path, name: str
) -> None:
    with embedded_valkey.socket_path(tmp_path / name) as path:
        assert len(os.fsencode(path)) <= 100
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


@pytest.mark.redis
def test_the_server_is_private_durable_and_refuses_rather_than_evicts(tmp_path: Path) -> None:
    folder = data_dir.valkey_folder(tmp_path / "a folder")
    lock_fd = data_dir.lock(folder)
    with embedded_valkey.socket_path(folder) as path:
        url = embedded_valkey.socket_url(path)
        server = embedded_valkey.valkey(folder, path, lock_fd)
        assert not embedded_valkey.answers(url)
        server.start()
        try:
            while not embedded_valkey.answers(url):
                assert server.alive
            with Redis.from_url(url, decode_responses=True) as connection:
                assert connection.client_info()["name"] == ""
                config = connection.config_get(
                    "appendonly", "maxmemory", "maxmemory-policy", "port"
                )
            assert int(config.pop("maxmemory")) == host_memory_bytes() // 2
            assert config == {"appendonly": "yes", "maxmemory-policy": "noeviction", "port": "0"}
            assert path.stat().st_mode & 0o777 == 0o700
        finally:
            server.send(signal.SIGTERM)
            server.finish()
            os.close(lock_fd)
