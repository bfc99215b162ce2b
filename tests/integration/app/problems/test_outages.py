"""The API while its job store is dead, hung, loading, a replica or full, and afterwards.

The store is a real server in real trouble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem, problem_within
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.valkey import OwnValkey
from tests.support.worker import IdleWorker

pytestmark = pytest.mark.redis

WRITES = {
    "post": ("POST", "/v1/jobs"),
    "cancel": ("POST", "{job}/cancel"),
    "delete": ("DELETE", "{job}"),
}
READS = {
    "job": ("GET", "{job}"),
    "wait": ("GET", "{job}?wait=20"),
    "events": ("GET", "{job}/events"),
    "image": ("GET", "{job}/images/0"),
    "preview": ("GET", "{job}/images/1/preview"),
    "grid": ("GET", "{job}/grid"),
    "archive": ("GET", "{job}/archive"),
    "list": ("GET", "/v1/jobs"),
    "ready": ("GET", "/readyz"),
    "api ready": ("GET", "/readyz/api"),
}


@dataclass(frozen=True, slots=True)
class Site:
    """An API before a server of its own, which holds a job: one image finished, one running."""

    server: OwnValkey
    api: httpx.Client
    job: str

    def ask(self, route: tuple[str, str]) -> httpx.Response:
        method, path = route
        body = {"model": "tiny"} if route == WRITES["post"] else None
        return self.api.request(method, path.format(job=self.job), json=body)


@pytest.fixture
def site(tmp_path: Path, models_dir: Path) -> Iterator[Site]:
    server = OwnValkey(tmp_path, **{"enable-protected-configs": "local"})
    server.start()
    app = create_app(ApiSettings(redis_url=server.url, models_dir=models_dir))
    with (
        serve(app, patient=False) as url,
        httpx.Client(base_url=url, timeout=20) as api,
        Redis.from_url(server.url) as redis,
    ):
        job = api.post("/v1/jobs", json={"model": "tiny", "count": 2}).json()
        worker = IdleWorker(redis)
        worker.announce()
        worker.start(job["id"])
        worker.publish(job["id"], [0])
        yield Site(server, api, job["links"]["self"])
    server.kill()


@contextmanager
def killed(server: OwnValkey) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def hung(server: OwnValkey) -> Iterator[None]:
    server.hang()
    yield
    server.go_on()


@contextmanager
def loading(server: OwnValkey) -> Iterator[None]:
    with Redis.from_url(server.url) as redis:
        redis.mset({f"filler:{number}": 1000 * "x" for number in range(2000)})
        redis.bgrewriteaof()
        eventually(
            lambda: not redis.info("persistence")["aof_rewrite_in_progress"],
            10,
            "its file is of the kind that can be slow",
        )
    server.kill()
    server.start(**{"key-load-delay": "2000", "loading-process-events-interval-bytes": "1024"})
    with Redis.from_url(server.url) as redis:
        eventually(lambda: says_loading(redis), 10, "the server says that it loads")
        yield
    server.kill()
    server.start()


def says_loading(redis: Redis) -> bool:
    try:
        redis.ping()
    except Exception as error:
        return "loading" in str(error).lower()
    return False


@pytest.mark.parametrize("outage", [killed, hung, loading])
def test_every_route_is_a_503_within_2_s_while_the_store_is_away_and_then_well(
    site: Site, outage: Callable
):
    def ask(route: tuple[str, str]) -> httpx.Response:
        return problem_within(2, 503, partial(site.ask, route))

    with outage(site.server), ThreadPoolExecutor(10) as threads:
        for response in threads.map(ask, [*WRITES.values(), *READS.values()]):
            assert int(response.headers["retry-after"]) > 0
        assert site.ask(("GET", "/healthz")).status_code == 200
    eventually(
        lambda: site.ask(READS["job"]).status_code in (200, 404),
        10,
        "the API is connected again",
    )
    assert site.ask(WRITES["post"]).status_code == 202


def contents(redis: Redis) -> dict[bytes, bytes]:
    return {key: redis.dump(key) for key in redis.keys("*") if key != b"ddpm:workers"}


@contextmanager
def out_of_memory(redis: Redis) -> Iterator[None]:
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@contextmanager
def out_of_disk(redis: Redis) -> Iterator[None]:
    """Have the server answer MISCONF: it shall save to a folder that is gone."""
    home = redis.config_get("dir")["dir"]
    gone = Path(home) / "gone"
    gone.mkdir()
    redis.config_set("dir", str(gone))
    gone.rmdir()
    redis.config_set("save", "3600 1000000")
    redis.bgsave()
    eventually(
        lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err",
        10,
        "saving has failed",
    )
    yield
    redis.config_set("dir", home)
    redis.config_set("save", "")


@contextmanager
def a_replica(redis: Redis) -> Iterator[None]:
    redis.replicaof("127.0.0.1", 1)
    yield
    redis.replicaof("NO", "ONE")


REFUSED = [
    *[(out_of_memory, 507, route) for route in ("post", "cancel")],
    *[(out_of_disk, 507, route) for route in WRITES],
    *[(a_replica, 503, route) for route in WRITES],
]


@pytest.mark.parametrize(("trouble", "status", "route"), REFUSED)
def test_a_write_that_the_store_refuses_changes_nothing_and_is_a_problem(
    site: Site, trouble: Callable, status: int, route: str
):
    with Redis.from_url(site.server.url) as redis:
        before = contents(redis)
        with trouble(redis):
            problem(site.ask(WRITES[route]), status)
            assert contents(redis) == before
            assert site.ask(READS["job"]).json()["state"] == "running"
            assert site.ask(READS["image"]).status_code == 200
        assert site.ask(WRITES[route]).status_code in (200, 202, 204)
