"""Models of one worker whose memory holds only some of them."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import pytest
from redis import Redis

from models.checkpoints import layout
from models.checkpoints.added.kept import keep, put_in_place
from models.checkpoints.catalog import Card
from tests.support.folders import write_model
from tests.support.jobs import state_of
from tests.support.offered import TurningWorker, bytes_of, pictures, post_for
from worker.jobs.keys import LEFT, job_key
from worker.process.models.keeper import KEPT_EVERY_S, KEPT_FOR_S
from worker.process.models.residency import SLICE_S

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Card]]:
    root = tmp_path_factory.mktemp("models")
    return root, {name: write_model(root, name, seed=i % 2) for i, name in enumerate(NAMES)}


@pytest.fixture
def root(models, tmp_path: Path) -> Path:
    shutil.copytree(models[0], tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def cards(models) -> dict[str, Card]:
    return models[1]


@pytest.fixture
def worker(redis: Redis, root: Path, cards) -> TurningWorker:
    """A worker whose memory holds one of the models."""
    memory = int(1.5 * bytes_of(cards["one"]))
    return TurningWorker(redis, root, NAMES, models_memory=memory)


def test_jobs_of_all_models_finish_in_memory_for_one_with_the_same_bytes(
    redis, root, cards, worker
):
    posted = [(cards[name], f"{i}{name}") for i in range(3) for name in NAMES]
    jobs = [post_for(redis, *job) for job in posted]
    assert len(worker.served) == 1
    worker.run(redis, *jobs)
    assert len(worker.served) == 1
    beside = [pictures(redis, job) for job in jobs]
    redis.flushall()
    alone = TurningWorker(redis, root, NAMES)
    assert alone.served == set(NAMES)
    for job in posted:
        post_for(redis, *job)
    alone.run(redis, *jobs)
    assert [pictures(redis, job) for job in jobs] == beside
    assert (len(beside[0]), alone.loads) == (3, {})


def test_models_that_take_turns_are_loaded_once_a_slice(redis, cards, worker):
    began_s = worker.clock.now_s
    # more steps than two slices have turns, so that running shards go back with saved steps
    jobs = [post_for(redis, cards[name], name, steps=100, count=2) for name in ("one", "two")]
    worker.run(redis, *jobs)
    passed_s = worker.clock.now_s - began_s
    loads = worker.loads
    assert (loads["one"] >= 1, loads["two"] >= 2) == (True, True)
    assert sum(loads.values()) <= passed_s / SLICE_S
    # each step was made once, but for what had not been saved
    assert worker.image_steps < 1.1 * 2 * 2 * 100


def test_a_model_that_is_put_away_leaves_nothing_in_memory(redis, cards, worker):
    (name,) = worker.served
    gone = weakref.ref(worker.loop.models[name])
    other = next(n for n in NAMES if n != name)
    worker.run(redis, post_for(redis, cards[other], "a"))
    gc.collect()
    assert (worker.served, gone()) == ({other}, None)
    said = worker.loop.parts.heartbeat._describe()
    assert {n: m.state for n, m in said.models.items()} == {name: "put away", other: "loaded"}
    assert said.memory_bytes <= said.memory_bound_bytes


def test_a_damaged_model_is_named_and_its_jobs_wait_until_it_is_mended(
    redis, root, cards, worker, caplog
):
    (name,) = worker.served
    bad, good = (n for n in NAMES if n != name)
    weights = root / bad / "unet" / layout.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    waits = post_for(redis, cards[bad], "a")
    worker.run(redis, post_for(redis, cards[good], "b"), post_for(redis, cards[name], "c"))
    # it has its turn now, if it had none before
    for _ in range(5):
        worker.turn()
    said = worker.loop.parts.heartbeat._describe()
    assert list(said.unserved) == [bad]
    assert said.unserved[bad].startswith(f"{bad}/unet/{layout.WEIGHTS} has sha256")
    assert str(weights) in caplog.text
    assert (state_of(redis, waits), redis.hget(f"rq:job:{waits}:0", "retries_left")) in [
        ("queued", b"3"),
        ("queued", None),
    ]
    weights.write_bytes(whole)
    worker.run(redis, waits)
    assert worker.loop.parts.heartbeat._describe().unserved == {}


def test_a_model_larger_than_the_bound_is_named_and_others_are_served(redis, root, cards):
    small = bytes_of(cards["one"])
    large = cards["two"].model_copy(update={"parameters": 10**9})
    (root / "two" / "card.json").write_text(large.model_dump_json())
    worker = TurningWorker(redis, root, NAMES, models_memory=int(2.5 * small))
    waits = post_for(redis, cards["two"], "a")
    worker.run(redis, post_for(redis, cards["one"], "b"), post_for(redis, cards["three"], "c"))
    reason = worker.loop.parts.heartbeat._describe().unserved["two"]
    assert reason.startswith("the model 'two' takes 4,0")
    assert reason.endswith("raise DDPM_MODELS_MEMORY, or leave it out of DDPM_MODELS")
    assert state_of(redis, waits) == "queued"


def test_jobs_keep_the_weights_that_they_were_accepted_with(redis, root, cards, tmp_path):
    worker = TurningWorker(redis, root, ("one",))
    old = post_for(redis, cards["one"], "a")
    newer = write_model(tmp_path / "new", "one", seed=1)
    put_in_place(tmp_path / "new" / "one", root / "one")
    new = post_for(redis, newer, "b")
    worker.run(redis, old, new)
    assert [state_of(redis, job) for job in (old, new)] == ["finished", "finished"]
    assert worker.served == {"one", f"one@{cards['one'].sha256[:12]}"}
    # and the same by a worker that starts now, which has both
    again = TurningWorker(redis, root, ("one",))
    assert again.served == {"one"}
    late = post_for(redis, cards["one"], "c")
    again.run(redis, late)
    assert state_of(redis, late) == "finished"
    assert pictures(redis, late) == pictures(redis, old)


def test_kept_weights_are_deleted_when_no_open_job_needs_them(redis, root, cards):
    worker = TurningWorker(redis, root, ("one", "two"))
    job = post_for(redis, cards["one"], "a", owner="ann")
    redis.hset(LEFT, job, "12 3 4 one ann")
    redis.hset(job_key(job), mapping={"model": "one", "weights": cards["one"].sha256})
    keep(root / "one")
    (kept,) = (root / ".kept").iterdir()
    for _ in range(2):
        worker.clock.pass_s(KEPT_FOR_S + KEPT_EVERY_S)
        worker.turn()
    assert kept.exists()
    worker.run(redis, job)
    redis.delete(LEFT)
    worker.clock.pass_s(KEPT_EVERY_S)
    worker.turn()
    assert not kept.exists()
    assert state_of(redis, job) == "finished"


def test_jobs_of_weights_that_are_nowhere_fail_with_the_reason(redis, root, cards):
    worker = TurningWorker(redis, root, ("one", "two"))
    gone = cards["two"].model_copy(update={"sha256": "ab" * 32})
    job = post_for(redis, gone, "a")
    worker.run(redis, job, post_for(redis, cards["two"], "b"))
    assert redis.hget(job_key(job), "error_code") == b"wrong_weights"
    assert b"are gone; post it again" in redis.hget(job_key(job), "error_message")
