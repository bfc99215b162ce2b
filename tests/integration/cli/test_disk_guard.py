"""An embedded Valkey on a disk that fills up lives on, and refuses jobs until there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from cli.serve.disk_guard import DiskGuard
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.valkey import OwnValkey

pytestmark = pytest.mark.redis
MEMORY = str(64 << 20)
MB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount on this machine")
    if done.returncode:
        pytest.skip(f"this user may mount nothing: {done.stderr.strip()}")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def post(api: httpx.Client) -> httpx.Response:
    return api.post("/v1/jobs", json={"model": "fashion-mnist-28"})


def test_jobs_are_refused_before_the_disk_is_full_and_accepted_when_it_has_room(small_disk):
    server = OwnValkey(small_disk, maxmemory=MEMORY)
    server.start()
    filler = small_disk / "filler"
    with (
        serve(create_app(ApiSettings(redis_url=server.url))) as url,
        httpx.Client(base_url=url, timeout=20) as api,
        Redis.from_url(server.url) as redis,
    ):
        guard = DiskGuard(redis, small_disk, MEMORY)
        guard.run_once()
        job = post(api)
        assert job.status_code == 202
        filler.write_bytes(bytes(59 * MB))
        guard.run_once()
        assert problem(post(api), 507)["type"].endswith(":store-full")
        assert api.get(job.json()["links"]["self"]).status_code == 200
        assert api.delete(job.json()["links"]["self"]).status_code == 204
        filler.unlink()
        guard.run_once()
        assert post(api).status_code == 202
    server.kill()


def test_the_guard_goes_not_to_and_fro_and_holds_after_a_restart(tmp_path, capsys):
    server = OwnValkey(tmp_path, maxmemory=MEMORY)
    server.start()
    free = 0
    with Redis.from_url(server.url) as redis:
        guard = DiskGuard(redis, tmp_path, MEMORY, lambda _: (free, 1000 * MB))

        def memory_with(free_now: int) -> int:
            nonlocal free
            free = free_now
            guard.run_once()
            return int(redis.config_get("maxmemory")["maxmemory"])

        assert memory_with(101 * MB) == int(MEMORY)
        assert memory_with(99 * MB) == 1
        assert memory_with(101 * MB) == 1, "the reserve is a tenth, and a quarter of it more"
        server.kill()
        server.start()
        assert memory_with(99 * MB) == 1
        assert memory_with(130 * MB) == int(MEMORY)
    server.kill()
    said = capsys.readouterr()
    assert (said.out + said.err).count("MB left") == 2


def test_deleted_jobs_leave_the_disk_while_there_is_little(tmp_path):
    server = OwnValkey(tmp_path, maxmemory=MEMORY)
    server.start()
    with Redis.from_url(server.url) as redis:
        redis.set("picture", bytes(8 * MB))
        redis.delete("picture")
        before = redis.info("persistence")["aof_current_size"]
        DiskGuard(redis, tmp_path, MEMORY, lambda _: (90 * MB, 1000 * MB)).run_once()
        eventually(
            lambda: redis.info("persistence")["aof_current_size"] < before - 7 * MB,
            60,
            "the file has been written anew",
        )
    server.kill()
