"""What is done to the job store under load, one thing at a time, in real seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx

from tests.chaos.actors import ROOT
from tests.chaos.stage import ChaosStage
from tests.support.processes import eventually
from tests.support.sentinels import WatchedPrimary, watched
from tests.support.stores import free_port

_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")
_REREAD_S = 1
_MINUTE_S = 60
_AHEAD = "+10m"
# The dashboard's pages that somebody who looks at a queue has open.
_PAGES = ("/0/view/queues", "/0/view/workers", "/0/data/queues.json", "/0/data/workers.json")
_POLLS = 30


class NotHere(Exception):
    """This machine lacks a program that a disturbance needs; the text names the remedy."""


@dataclass(frozen=True, slots=True)
class Store:
    """A job store that somebody else than the stage runs, or its environment.

    Attributes:
        redis_url: Its URL; "" for the stage's own store.
        env: The environment of the stage's own store.
        servers: The servers that Sentinels watch, if there are any.
        clock: The file that sets the store's clock, if it can be set.
    """

    redis_url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    servers: WatchedPrimary | None = None
    clock: Path | None = None


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something that is done to the job store.

    Attributes:
        name: Its name on the command line.
        run: Does it, and returns when it is over.
        store: Runs the job store that it needs, in an empty folder.
    """

    name: str
    run: Callable[[ChaosStage, Store], None]
    store: Callable[[Path], AbstractContextManager[Store]] = lambda _: nullcontext(Store())


def pause(stage: ChaosStage, seconds: float) -> None:
    """Let time pass, while the stage keeps its processes alive."""
    until = time.monotonic() + seconds
    stage.tend_until(lambda: time.monotonic() >= until)


def _away(seconds: float) -> Callable[[ChaosStage, Store], None]:
    def kill(stage: ChaosStage, _: Store) -> None:
        store = stage.fleet.store
        assert store
        store.kill(away_s=seconds)
        stage.say(f"the store is killed, for {seconds:g} s")
        stage.tend_until(lambda: store.alive)
        stage.say("it is started again")

    return kill


def _fail_over(stage: ChaosStage, store: Store) -> None:
    servers = store.servers
    assert servers
    old = servers.primary
    # What the replica lacks is lost with the primary, whatever a client does.
    servers.client(old).wait(1, 10_000)
    servers.kill(old)
    began = time.monotonic()
    stage.tend_until(lambda: servers.primary != old)
    stage.say(f"the Sentinels name another primary after {time.monotonic() - began:.1f} s")
    pause(stage, 5)
    servers.start_again(old)
    stage.say("the old one is back, as a replica")


def _step_clock(stage: ChaosStage, store: Store) -> None:
    """Set the clock a minute forwards, back by a minute, and another minute back."""
    assert store.clock
    for offset_s in (_MINUTE_S, 0, -_MINUTE_S, 0):
        store.clock.write_text(f"{offset_s:+d}")
        stage.tend_until(lambda offset_s=offset_s: abs(_offset_s(stage) - offset_s) < 2)
        stage.say(f"the store's clock is set to {offset_s:+d} s, as TIME says")
        pause(stage, 8)


def _offset_s(stage: ChaosStage) -> float:
    seconds, microseconds = stage.redis.time()
    return float(seconds + microseconds / 1e6 - time.time())


def _rq_info(stage: ChaosStage, _: Store) -> None:
    env = {**_faked(_AHEAD), "PYTHONPATH": str(ROOT)}
    socket = stage.redis.connection_pool.connection_kwargs["path"]
    rq = [sys.executable, "-m", "rq.cli", "info", "--url", f"unix://{socket}"]
    for _ in range(10):
        subprocess.run(rq, env=env, check=True, capture_output=True, cwd=ROOT)
        pause(stage, 0.5)
    stage.say(f"rq info ran ten times on a host whose clock is at {_AHEAD}")


def _dashboard(stage: ChaosStage, _: Store) -> None:
    if find_spec("rq_dashboard") is None:
        raise NotHere("rq-dashboard is not here; pip install rq-dashboard")
    port = free_port()
    socket = stage.redis.connection_pool.connection_kwargs["path"]
    command = [sys.executable, "-m", "rq_dashboard", "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--redis-url", f"unix://{socket}"]
    env = _faked(_AHEAD)
    log = stage.fleet.apis[0].folder / "dashboard.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        _poll(f"http://127.0.0.1:{port}", stage)
    finally:
        process.terminate()
        process.wait()


def _poll(url: str, stage: ChaosStage) -> None:
    with httpx.Client(base_url=url, timeout=30, follow_redirects=True) as http:
        eventually(lambda: _is_up(http), 30, "rq-dashboard answers")
        answers = []
        for _ in range(_POLLS):
            answers += [http.get(page).status_code for page in _PAGES]
            pause(stage, 0.3)
    found = {code: answers.count(code) for code in sorted(set(answers))}
    stage.say(f"rq-dashboard on a host at {_AHEAD} answered {found}")


def _is_up(http: httpx.Client) -> bool:
    try:
        return http.get(_PAGES[0]).is_success
    except httpx.TransportError:
        return False


def _faked(time_: str) -> dict[str, str]:
    """Return the environment of a process with another clock.

    Raises:
        NotHere: This machine has no libfaketime.
    """
    found = [path for pattern in _LIBRARIES for path in sorted(Path("/").glob(pattern[1:]))]
    if not found:
        raise NotHere("libfaketime is not here; on Debian: apt-get install libfaketime")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": time_,
        # What takes how long is measured by another clock, which no step changes.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@contextmanager
def _store_with_a_clock(folder: Path) -> Iterator[Store]:
    clock = folder / "clock"
    clock.write_text("+0")
    env = _faked("")
    del env["FAKETIME"]
    env |= {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": str(_REREAD_S)}
    yield Store(env=env, clock=clock)


@contextmanager
def _watched_store(folder: Path) -> Iterator[Store]:
    with watched("valkey", folder) as servers:
        yield Store(redis_url=servers.url, servers=servers)


DISTURBANCES: Sequence[Disturbance] = (
    Disturbance("away-20", _away(20)),
    Disturbance("away-60", _away(60)),
    Disturbance("failover", _fail_over, _watched_store),
    Disturbance("clock", _step_clock, _store_with_a_clock),
    Disturbance("rq-info", _rq_info),
    Disturbance("dashboard", _dashboard),
)
