"""Shards that a worker takes from the queue, depending on what it holds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import TimeoutError

from tests.support.clock import SimulatedClock
from tests.support.jobs import state_of
from tests.support.loaded import load_tiny
from tests.support.parts import (
    build_worker,
    handle_all,
    post,
    raising,
    run_to_the_end,
    take,
)
from worker.engine.batch_sizes import BatchSizes
from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import CHANGES, chains_key, rotation_name
from worker.process.intake import (
    ASKS_EVERY_S,
    FOREIGN_PAUSE_S,
    TAKEN_AT_ONCE,
    ChangeListener,
    Intake,
)
from worker.process.loaded_model import LoadedModel
from worker.process.loop import LEAN_S, WorkerLoop
from worker.process.messages import JobEnded, Message, WorkerIdle
from worker.results.store import StoreFault


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(tmp_path_factory.mktemp("models"))


@pytest.fixture
def worker(redis: Redis, model: LoadedModel) -> WorkerLoop:
    return build_worker(redis, model)


def intake_of(worker: WorkerLoop, **options: Any) -> Intake:
    """Return another intake for the worker; it asks an empty queue again at once."""
    parts = worker.parts
    options = {"poll_every_s": 0.0} | options
    return Intake(parts.shards, parts.writer, worker.models, parts.load, parts.messages, **options)


def taken(worker: WorkerLoop) -> list[str]:
    """Return the ids of the shards that wait for the loop."""
    messages = worker.parts.messages
    return [messages.get_nowait().lease.shard.id for _ in range(messages.qsize())]


def test_bulk_work_is_taken_beside_interactive_work(redis, model, worker):
    """So the scheduler's floor has something to keep moving."""
    shard = post(redis, model, count=3 * 64, steps=2)
    intake = intake_of(worker)
    intake.run_once()
    intake.run_once()
    assert taken(worker) == [f"{shard.job}-0", f"{shard.job}-1"]


def test_owners_take_turns_however_many_jobs_one_of_them_has(redis, model, worker):
    for number in range(20):
        post(redis, model, count=1, owner="ann", job=f"ann{number}")
    for owner in ("bob", "eve"):
        post(redis, model, count=1, owner=owner, job=owner)
    intake = intake_of(worker)
    intake.run_once()
    assert taken(worker)[:5] == ["ann0-0", "bob-0", "eve-0", "ann1-0", "ann2-0"]


def test_many_small_shards_are_taken_and_started_in_two_round_trips(
    redis, model, worker, monkeypatch
):
    for number in range(3 * TAKEN_AT_ONCE):
        post(redis, model, count=1, job=f"j{number:03}")
    intake, sent = intake_of(worker), []
    connection = type(redis.connection_pool.get_connection())
    send = connection.send_packed_command

    def counted(self: Any, command: Any, check_health: bool = True) -> None:
        sent.append(command)
        send(self, command, check_health)

    intake.run_once()
    monkeypatch.setattr(connection, "send_packed_command", counted)
    intake.run_once()
    assert len(sent) == 2
    assert taken(worker) == [f"j{number:03}-0" for number in range(2 * TAKEN_AT_ONCE)]


@pytest.fixture
def slow(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch be 64 images, and a step of it take a second."""
    monkeypatch.setattr(model.engine, "batch_sizes", BatchSizes({64: 1.0}))


@pytest.mark.usefixtures("slow")
def test_a_slow_worker_takes_one_batch_of_a_big_job(redis, model, worker):
    post(redis, model, count=16 * 64, steps=3)
    intake = intake_of(worker)
    for _ in range(6):
        intake.run_once()
    assert worker.parts.load.images("tiny", Priority.INTERACTIVE) == 64
    assert worker.parts.load.images("tiny", Priority.BULK) == 64
    assert redis.llen("rq:queue:bulk:tiny:local") == 14


@pytest.mark.usefixtures("slow")
def test_a_slow_worker_leaves_small_jobs_in_the_queue_that_a_fast_one_takes(redis, model, worker):
    for number in range(256):
        post(redis, model, count=1, steps=4, job=f"j{number}")
    load = worker.parts.load
    for slowed, most in ((1.0, 64), (0.001, 256 - 127)):
        intake = intake_of(worker, slowed=lambda slowed=slowed: slowed)
        for _ in range(32):
            intake.run_once()
        assert load.images("tiny", Priority.INTERACTIVE) == most


@pytest.mark.usefixtures("slow")
def test_an_owner_who_fills_what_is_at_hand_keeps_nobody_out(redis, model, worker):
    for number in range(256):
        post(redis, model, count=1, steps=1000, job=f"ann{number}", owner="ann")
    intake = intake_of(worker)
    for _ in range(32):
        intake.run_once()
    assert len(taken(worker)) == 64
    for owner in ("bob", "cy"):
        for number in range(3):
            post(redis, model, count=1, owner=owner, job=f"{owner}{number}")
    for _ in range(4):
        intake.run_once()
    assert taken(worker) == ["bob0-0", "cy0-0"]


def heard_by(redis: Redis, worker: WorkerLoop, act: Callable[[], object]) -> list[Message]:
    """Return what the worker's listener hears while something happens."""
    parts = worker.parts
    options = {"name": parts.shards.name, "poll_every_s": 0.1}
    listener = ChangeListener(redis, parts.load, parts.messages, parts.previews, **options)
    listener.run_once()
    act()
    redis.publish(CHANGES, "the-end cancelled")
    heard = []
    while not heard or not isinstance(heard[-1], JobEnded):
        listener.run_once()
        while not parts.messages.empty():
            heard.append(parts.messages.get_nowait())
    return heard[:-1]


@pytest.mark.usefixtures("slow")
def test_parked_shards_go_to_a_worker_that_has_nothing_at_no_loss(redis, model):
    shards = [post(redis, model, count=32, steps=3, job=f"j{n}") for n in range(5)]
    clock = SimulatedClock()
    worker = build_worker(redis, model, clock=clock)
    eager = intake_of(worker, slowed=lambda: 0.001, clock=clock)
    for _ in range(3):
        eager.run_once()
    handle_all(worker)
    assert len(worker.active) == 5
    running = list(worker.active)[:2]
    model.engine.step([chain for active in running for chain in active.chains()])

    other = build_worker(redis, model)
    idle = intake_of(other, clock=clock)
    [message] = heard_by(redis, worker, idle.run_once)
    worker.handle(message)
    eager.run_once()
    assert list(worker.active) == running
    assert [lease.shard for lease in worker.parts.shards.leases] == shards[:2]
    waits = redis.lrange(f"rq:queue:{shards[0].queue}", 0, -1)
    assert waits == [shard.id.encode() for shard in shards[2:]], "in their order"

    idle.run_once()
    leases = other.parts.shards.leases
    assert [lease.shard for lease in leases] == shards[2:4], "it takes a batch, which it runs"
    assert {(lease.attempt, lease.suspect) for lease in leases} == {(1, False)}
    eager.run_once()
    assert len(worker.parts.shards.leases) == 2, "nothing goes to and fro"
    clock.pass_s(LEAN_S)
    eager.run_once()
    assert [lease.shard for lease in worker.parts.shards.leases][2:] == shards[4:]
    model.engine.cancel([chain for active in running for chain in active.chains()])


@pytest.mark.usefixtures("slow")
def test_only_a_worker_with_room_beside_others_that_hold_something_asks_for_more(
    redis, model, worker
):
    other, clock = build_worker(redis, model), SimulatedClock()
    intake = intake_of(worker, clock=clock)
    assert heard_by(redis, other, intake.run_once) == [], "nobody holds anything"
    clock.pass_s(ASKS_EVERY_S)
    post(redis, model, count=64)
    other.parts.shards.take([rotation_name("interactive", "tiny")])
    rotations = frozenset(rotation_name(priority, "tiny") for priority in Priority)
    assert heard_by(redis, other, intake.run_once) == [WorkerIdle(rotations)]
    assert heard_by(redis, worker, intake.run_once) == [], "not so soon again"
    clock.pass_s(ASKS_EVERY_S)
    assert heard_by(redis, worker, intake.run_once) == [], "it does not hear itself"
    post(redis, model, count=64, job="b" * 32)
    intake.run_once()
    clock.pass_s(ASKS_EVERY_S)
    assert heard_by(redis, other, intake.run_once) == [], "its batch is full"


def make_foreign(redis: Redis, shard: Shard) -> dict[bytes, bytes]:
    """Give the shard fields of tomorrow; return RQ's hash as it was."""
    before = redis.hgetall(f"rq:job:{shard.id}")
    fields = shard.to_json() | {"tomorrow": 1}
    data = json.dumps(["worker.sample", None, [], fields]).encode()
    redis.hset(f"rq:job:{shard.id}", "data", zlib.compress(data))
    return before


def test_a_shard_of_another_version_is_left_to_a_worker_that_can_read_it(
    redis, model, worker, caplog
):
    shard = post(redis, model, steps=2)
    readable = make_foreign(redis, shard)
    intake = intake_of(worker)
    for _ in range(5):
        intake.run_once()
    assert state_of(redis, shard.job) == "queued"
    assert redis.lrange(f"rq:queue:{shard.queue}", 0, -1) == [shard.id.encode()]
    assert redis.hget(f"rq:job:{shard.id}", "retries_left") == readable[b"retries_left"]
    assert not worker.parts.shards.leases
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"shard {shard.id} was written by another version" in warning
    redis.hset(f"rq:job:{shard.id}", mapping={b"data": readable[b"data"]})
    newer = build_worker(redis, model)
    take(newer)
    run_to_the_end(newer)
    assert state_of(redis, shard.job) == "finished"


def test_shards_of_another_version_hold_up_no_other_and_are_not_taken_all_the_time(
    redis, model, worker, monkeypatch
):
    clock = SimulatedClock()
    for number in range(3):
        make_foreign(redis, post(redis, model, job=f"foreign{number}"))
    post(redis, model, job="ours")
    takes = []
    take_up_to = worker.parts.shards.take_up_to
    monkeypatch.setattr(
        worker.parts.shards,
        "take_up_to",
        lambda most, wanted, **_: takes.append(wanted) or take_up_to(most, wanted),
    )
    intake = intake_of(worker, clock=clock)
    for _ in range(20):
        intake.run_once()
    assert taken(worker) == ["ours-0"]
    interactive = rotation_name("interactive", "tiny")
    # All four, the three foreign ones, and those again.
    assert sum(interactive in wanted for wanted in takes) == 3
    assert interactive not in intake.wanted()
    clock.pass_s(FOREIGN_PAUSE_S)
    assert interactive in intake.wanted()
    post(redis, model, job="ours-too")
    for _ in range(5):
        intake.run_once()
    assert taken(worker) == ["ours-too-0"]
    waiting = redis.lrange(f"rq:queue:{interactive}:local", 0, -1)
    assert sorted(waiting) == [b"foreign0-0", b"foreign1-0", b"foreign2-0"]


def test_one_owners_shards_of_another_version_do_not_pause_the_others(redis, model, worker):
    for number in range(3):
        make_foreign(redis, post(redis, model, job=f"foreign{number}", owner="ann"))
    intake, posted = intake_of(worker, clock=SimulatedClock()), []
    for number in range(20):
        posted.append(post(redis, model, count=1, job=f"bob{number}", owner="bob").id)
        intake.run_once()
    assert taken(worker) == posted


def test_a_sampler_of_tomorrow_is_left_to_a_worker_that_has_it(redis, model, worker):
    shard = post(redis, model, sampler="euler")
    intake = intake_of(worker)
    for _ in range(5):
        intake.run_once()
    assert worker.parts.messages.empty()
    assert state_of(redis, shard.job) == "queued"
    assert redis.lrange(f"rq:queue:{shard.queue}", 0, -1) == [shard.id.encode()]


def test_a_worker_that_stops_gives_back_what_it_cannot_read(redis, model, worker, monkeypatch):
    shard = post(redis, model)
    make_foreign(redis, shard)
    client, called = redis.__class__, []
    execute = client.execute_command

    def lose_answer(self, *command, **options):
        answer = execute(self, *command, **options)
        if command[0].startswith("EVAL") and not called:
            called.append(command)
            raise TimeoutError("no answer")
        return answer

    with monkeypatch.context() as lost:
        lost.setattr(client, "execute_command", lose_answer)
        with pytest.raises(TimeoutError):
            worker.parts.shards.take([rotation_name("interactive", "tiny")])
    assert not redis.llen(f"rq:queue:{shard.queue}")
    worker.parts.shards.close()
    assert redis.lrange(f"rq:queue:{shard.queue}", 0, -1) == [shard.id.encode()]


def test_nothing_is_wanted_while_results_wait_to_be_sent(worker):
    assert intake_of(worker).wanted()
    assert not intake_of(worker, is_held_back=lambda: True).wanted()


def test_saved_chains_that_the_store_does_not_give_hold_up_nobody_for_long(
    redis, model, worker, monkeypatch, caplog
):
    clock = SimulatedClock()
    shard = post(redis, model)
    redis.hset(chains_key(shard.job), "0", "")
    unreadable = StoreFault("an object that may not be read")
    monkeypatch.setattr(worker.parts.writer, "saved", raising(unreadable))
    intake = intake_of(worker, saved_within_s=30.0, clock=clock)
    for seconds in (29.0, 0.9):
        with pytest.raises(StoreFault):
            intake.run_once()
        clock.pass_s(seconds)
    assert worker.parts.messages.empty()
    clock.pass_s(0.2)
    intake.run_once()
    message = worker.parts.messages.get_nowait()
    assert message.lease.shard.id == shard.id
    assert (message.indices, message.saved) == ([0, 1, 2], None)
    assert "begins anew" in caplog.text


def test_chains_that_the_store_does_not_give_hold_up_no_shard_of_the_same_take(
    redis, model, worker, monkeypatch
):
    unreadable = post(redis, model)
    redis.hset(chains_key(unreadable.job), "0", "")
    other = post(redis, model, job="b" * 32)
    monkeypatch.setattr(worker.parts.writer, "saved", raising(StoreFault("away")))
    with pytest.raises(StoreFault):
        intake_of(worker).run_once()
    assert taken(worker) == [other.id]
