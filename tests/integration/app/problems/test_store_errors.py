"""Every error of the job store is a problem of the right status, and one line in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread

import httpx
import pytest
from redis import Redis
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from app.main import create_app
from app.operation.readiness import WriteProbe
from app.problems.problems import StoreUnreachable
from app.problems.store_error_log import StoreErrorLog
from app.settings import ApiSettings
from tests.support.clock import SimulatedClock
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.proxy import proxy
from tests.support.resp import ErrorServer, error_server
from tests.support.server import serve
from tests.support.stores import running
from tests.support.valkey import OwnValkey
from worker.jobs.store import client
from worker.jobs.store.errors import REFUSALS, is_transient

pytestmark = pytest.mark.redis

# As servers say them. The last ones are of older servers and of scripts, and bugs of ours.
SAID = {
    "OOM command not allowed when used memory > 'maxmemory'.": (507, "store-full"),
    "MISCONF Errors writing to the AOF file: No space left on device": (507, "store-full"),
    "LOADING Redis is loading the dataset in memory": (503, "store-refuses"),
    "READONLY You can't write against a read only replica.": (503, "store-refuses"),
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": (
        503,
        "store-refuses",
    ),
    "NOREPLICAS Not enough good replicas to write.": (503, "store-refuses"),
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL.": (503, "store-refuses"),
    "UNKILLABLE Sorry the script already executed write commands.": (503, "store-refuses"),
    "NOSCRIPT No matching script. Please use EVAL.": (503, "store-refuses"),
    "TRYAGAIN Multiple keys request during rehashing of slot": (503, "store-refuses"),
    "CLUSTERDOWN Hash slot not served": (503, "store-refuses"),
    "CROSSSLOT Keys in request don't hash to the same slot": (503, "store-refuses"),
    "MOVED 3999 127.0.0.1:6381": (503, "store-refuses"),
    "ASK 3999 127.0.0.1:6381": (503, "store-refuses"),
    "NOAUTH Authentication required.": (503, "store-refuses"),
    "WRONGPASS invalid username-password pair or user is disabled.": (503, "store-refuses"),
    "NOPERM this user has no permissions to run the 'eval' command": (503, "store-refuses"),
    "ERR max number of clients reached": (503, "store-refuses"),
    "ERR invalid password": (503, "store-refuses"),
    "ERR Error running script (call to f_0): @user_script:1: -OOM command not allowed": (
        507,
        "store-full",
    ),
    "READONLY You can't write against a read only replica. script: f_0, on @user_script:1.": (
        503,
        "store-refuses",
    ),
    "ERR unknown command 'EVAL'": (500, "internal"),
    "WRONGTYPE Operation against a key holding the wrong kind of value": (500, "internal"),
}


@pytest.fixture(scope="module")
def store() -> Iterator[ErrorServer]:
    with error_server() as server:
        yield server


@contextmanager
def api_before(url: str, **settings: object) -> Iterator[httpx.Client]:
    app = create_app(ApiSettings(redis_url=url, **settings))
    with serve(app, patient=False) as base, httpx.Client(base_url=base, timeout=20) as api:
        yield api


@pytest.fixture(scope="module")
def api(store: ErrorServer) -> Iterator[httpx.Client]:
    with api_before(store.url) as api:
        yield api


def post(api: httpx.Client) -> httpx.Response:
    return api.post("/v1/jobs", json={"model": "fashion-mnist-28"})


def test_every_error_of_the_table_is_tried():
    said = " ".join(SAID)
    assert [word for word in REFUSALS if word not in said] == []


@pytest.mark.parametrize("error", SAID)
def test_an_error_of_the_store_is_a_problem_for_reads_and_writes(api, store, error):
    store.error = error
    status, name = SAID[error]
    # uvicorn closes a connection after a bug.
    api.headers["connection"] = "close"
    for answer in (post(api), api.get("/v1/jobs"), api.get(f"/v1/jobs/{'0' * 32}")):
        assert problem(answer, status)["type"].endswith(f":{name}")


@pytest.mark.parametrize("error", [error for error, (status, _) in SAID.items() if status != 500])
def test_a_worker_waits_for_the_end_of_an_error_of_the_table(store, error):
    store.error = error
    with client.connect(store.url, 2.0) as redis, pytest.raises(RedisError) as met:
        redis.set("a", 1)
    assert is_transient(met.value)


def test_an_outage_is_one_line_with_its_cause(store, caplog):
    store.error = "NOREPLICAS Not enough good replicas to write."
    caplog.set_level(logging.WARNING, "app.problems")
    with api_before(store.url) as api:
        for _ in range(20):
            post(api)
    ours = [record.message for record in caplog.records if record.name.startswith("app.problems")]
    (line,) = ours
    assert "answered with 503 store-refuses" in line
    assert "Not enough good replicas" in line


def test_an_outage_that_comes_back_later_is_another_line(caplog):
    clock = SimulatedClock()
    errors = StoreErrorLog(clock)
    for seconds in (0, 9, 9, 11):
        clock.pass_s(seconds)
        errors.note(ResponseError("gone"), StoreUnreachable())
    assert len(caplog.records) == 2


def test_connections_that_are_all_in_use_are_named_as_such(tmp_path):
    server = OwnValkey(tmp_path)
    server.start()
    with api_before(server.url, redis_connections=8) as api:
        server.hang()
        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(lambda _: api.get("/v1/me"), range(24)))
        server.go_on()
        names = {problem(answer, 503)["type"].rpartition(":")[2] for answer in answers}
        assert names == {"store-unreachable", "connections-in-use"}
        eventually(lambda: post(api).status_code == 202, 10, "posts are accepted again")
    server.kill()


def test_a_connection_that_was_closed_while_idle_costs_no_answer(tmp_path):
    server = OwnValkey(tmp_path)
    server.start()
    with api_before(server.url) as api, Redis.from_url(server.url) as redis:
        for _ in range(5):
            assert post(api).status_code == 202
            assert api.get("/v1/jobs").status_code == 200
            redis.client_kill_filter(_type="normal", skipme=True)
        worker = client.connect(server.url, 2.0)
        for _ in range(5):
            assert worker.ping()
            redis.client_kill_filter(_type="normal", skipme=True)
        worker.close()
    server.kill()


@contextmanager
def without_replicas(redis: Redis) -> Iterator[None]:
    redis.config_set("min-replicas-to-write", 1)
    yield
    redis.config_set("min-replicas-to-write", 0)


@contextmanager
def a_stale_replica(redis: Redis) -> Iterator[None]:
    redis.config_set("replica-serve-stale-data", "no")
    redis.replicaof("127.0.0.1", 1)
    yield
    redis.replicaof("NO", "ONE")


@contextmanager
def a_replica(redis: Redis) -> Iterator[None]:
    redis.replicaof("127.0.0.1", 1)
    yield
    redis.replicaof("NO", "ONE")


@contextmanager
def out_of_memory(redis: Redis) -> Iterator[None]:
    redis.config_set("maxmemory", 1)
    yield
    redis.config_set("maxmemory", 0)


@contextmanager
def without_rights(redis: Redis) -> Iterator[None]:
    redis.acl_setuser("default", enabled=True, nopass=True, commands=["-eval", "-evalsha", "-set"])
    yield
    redis.acl_setuser("default", enabled=True, nopass=True, commands=["+eval", "+evalsha", "+set"])


@contextmanager
def busy(redis: Redis) -> Iterator[None]:
    redis.config_set("busy-reply-threshold", 1)
    long = Thread(target=run_long_script, args=(redis,))
    long.start()
    eventually(lambda: is_busy(redis), 10, "the server is busy")
    yield
    redis.script_kill()
    long.join()


def run_long_script(redis: Redis) -> None:
    with Redis.from_url(url_of(redis), socket_timeout=60) as own, pytest.raises(ResponseError):
        own.eval("while true do end", 0)


def url_of(redis: Redis) -> str:
    return f"unix://{redis.connection_pool.connection_kwargs['path']}"


def is_busy(redis: Redis) -> bool:
    try:
        redis.ping()
    except ResponseError as error:
        return "BUSY" in str(error)
    return False


MOODS = [
    (without_replicas, 503, "store-refuses"),
    (a_stale_replica, 503, "store-refuses"),
    (a_replica, 503, "store-refuses"),
    (without_rights, 503, "store-refuses"),
    (busy, 503, "store-refuses"),
    (out_of_memory, 507, "store-full"),
]


@pytest.mark.parametrize(("mood", "status", "name"), MOODS)
def test_a_store_that_refuses_writes_is_not_ready_and_says_why_until_it_recovers(
    tmp_path, mood: Callable, status: int, name: str
):
    server = OwnValkey(tmp_path)
    server.start()
    with api_before(server.url) as api, Redis.from_url(server.url) as redis:
        # Many connections are open, and each would meet the replica once more.
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda _: post(api), range(32)))
        with mood(redis):
            for answer in (post(api), api.get("/readyz")):
                assert problem(answer, status)["type"].endswith(f":{name}")
        assert post(api).status_code == 202
        eventually(lambda: is_no_worker(api), 10, "the store takes writes again")
    server.kill()


def is_no_worker(api: httpx.Client) -> bool:
    return str(api.get("/readyz").json()["type"]).endswith(":no-worker")


async def test_many_probes_of_readiness_are_one_write_a_second(valkey_url, redis):
    clock = SimulatedClock()
    redis.config_resetstat()
    async with client.connect_async(valkey_url, 5.0, 8, 5.0) as store:
        probe = WriteProbe(store, clock)
        for _ in range(3):
            await asyncio.gather(*(probe.check() for _ in range(100)))
            clock.pass_s(0.9)
    assert redis.info("commandstats")["cmdstat_set"]["calls"] == 2


def test_a_failover_behind_one_address_ends_with_one_error_for_each_client(tmp_path):
    """The primary becomes a replica, while connections to it stay open."""
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        folder.mkdir()
    with (
        running("valkey", "open", folders[0]) as old,
        running("valkey", "open", folders[1]) as new,
        proxy(old) as address,
        api_before(address.url) as api,
        client.connect(address.url, 2.0) as worker,
        Redis.from_url(old) as old_primary,
    ):
        # Many connections are open, and each would meet the replica once more.
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: post(api), range(32)))
            list(threads.map(lambda _: worker.ping(), range(32)))
        assert {answer.status_code for answer in answers} == {202}
        old_primary.replicaof("127.0.0.1", int(new.rpartition(":")[2].partition("/")[0]))
        address.lead_to(new)
        assert problem(post(api), 503)["type"].endswith(":store-refuses")
        assert [post(api).status_code for _ in range(16)] == [202] * 16
        with worker.pipeline() as pipe:
            pipe.eval("return redis.call('SET', KEYS[1], 1)", 1, "a")
            with pytest.raises(ReadOnlyError):
                pipe.execute()
        with ThreadPoolExecutor(16) as threads:
            assert all(threads.map(lambda n: worker.set("a", n), range(32)))
