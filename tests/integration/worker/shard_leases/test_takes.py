"""What a worker takes: whose shard, and what it has of a take whose answer is lost."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from tests.support.shards import (
    LEASE_S,
    MODEL,
    QUEUES,
    RECIPE,
    post,
    rescue,
    shard,
    taken,
    waiting,
    worker,
)
from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import LEASES, ROTATION_PREFIX, STONES, rotation_name
from worker.jobs.policy import FLOOR
from worker.jobs.reaper import Reaper
from worker.jobs.shard_queue import reap, sweep, withdraw
from worker.process.shard_leases import ShardLeases


def lose_the_answer(w: ShardLeases, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs the next take, and its worker gets no answer."""
    with monkeypatch.context() as broken:
        send = w.connection.execute_command

        def unanswered(*command: Any, **options: Any) -> None:
            send(*command, **options)
            raise TimeoutError("no answer")

        broken.setattr(w.connection, "execute_command", unanswered)
        with pytest.raises(TimeoutError):
            w.take(QUEUES)


def test_a_shard_whose_take_was_not_answered_is_held_by_who_asks_again(redis, monkeypatch):
    post(redis, shard("a"), shard("b"))
    w = worker(redis)
    lose_the_answer(w, monkeypatch)
    lease = w.take([])  # nothing more is wanted by now
    assert (lease.shard, w.holds(lease), w.heartbeat()) == (shard("a"), True, [])
    assert taken(w) == "b", "and the next one is another"
    assert w.take(QUEUES) is None
    w.close()
    assert waiting(redis) == ["a-0", "b-0"]


def test_a_shard_whose_take_was_not_answered_is_given_back_by_a_worker_that_stops(
    redis, monkeypatch
):
    post(redis, shard("a"))
    w = worker(redis)
    lose_the_answer(w, monkeypatch)
    w.close()
    assert waiting(redis) == ["a-0"]
    assert taken(worker(redis)) == "a"


def test_a_take_that_was_not_answered_and_got_nothing_is_simply_asked_again(redis, monkeypatch):
    w = worker(redis)
    lose_the_answer(w, monkeypatch)
    assert w.take([]) is None
    post(redis, shard("a"))
    assert taken(w) == "a"


def test_a_take_that_the_server_runs_again_later_takes_no_second_shard(redis, monkeypatch):
    """A command that waited in a stalled server, and whose worker has asked anew meanwhile."""
    post(redis, shard("a"), shard("b"))
    w = worker(redis)
    sent: list[tuple[Any, ...]] = []
    send = redis.execute_command
    with monkeypatch.context() as overheard:
        overheard.setattr(
            w.connection, "execute_command", lambda *command: sent.append(command) or send(*command)
        )
        assert taken(w) == "a"
    assert send(*sent[-1])[1] == b"a-0"
    assert waiting(redis) == ["b-0"]


def test_a_shard_that_lapsed_before_its_taker_asked_again_is_not_held_by_it(redis, monkeypatch):
    post(redis, shard("a"))
    w, other = worker(redis), worker(redis)
    lose_the_answer(w, monkeypatch)
    time.sleep(LEASE_S + 0.1)
    assert rescue(redis) == [("a-0", "requeued")]
    assert taken(other) == "a"
    assert w.take(QUEUES) is None


def test_one_take_brings_up_to_so_many_shards_and_the_same_ones_if_asked_again(redis, monkeypatch):
    post(redis, *(replace(shard(job), count=1) for job in "abcdef"))
    w, rooms = worker(redis, lease_s=60), {QUEUES[0]: 64 + 3}
    with monkeypatch.context() as broken:
        send = w.connection.execute_command

        def unanswered(*command: Any, **options: Any) -> None:
            send(*command, **options)
            raise TimeoutError("no answer")

        broken.setattr(w.connection, "execute_command", unanswered)
        with pytest.raises(TimeoutError):
            w.take_up_to(8, rooms)
    assert [lease.shard.job for lease in w.take_up_to(8, {})] == list("abcd"), "as there was room"
    assert [lease.shard.job for lease in w.take_up_to(1, rooms)] == ["e"]
    assert len(w.leases) == 5
    w.close()
    assert waiting(redis) == [f"{job}-0" for job in "abcdef"]


def test_a_take_of_large_shards_leaves_the_next_ones_to_other_workers(redis):
    post(redis, *(replace(shard(str(n)), count=count) for n, count in enumerate([1, 63, 64, 64])))
    w, rooms = worker(redis), {QUEUES[0]: 1024}
    takes = [[lease.shard.count for lease in w.take_up_to(8, rooms)] for _ in range(3)]
    assert takes == [[1, 63], [64], [64]]


def test_a_suspect_is_the_last_one_of_a_take(redis):
    post(redis, *(replace(shard(job), count=1) for job in "abc"))
    redis.hset("rq:job:b-0", "retries_left", 1)
    leases = worker(redis).take_up_to(8, {QUEUES[0]: 1024})
    assert [(lease.shard.job, lease.suspect) for lease in leases] == [("a", False), ("b", True)]


def of(owner: str, job: str, model: str = MODEL, priority: str = "interactive") -> Shard:
    return replace(shard(job, priority), owner=owner, recipe=replace(RECIPE, model=model))


def takes(w: ShardLeases, count: int, rotations: list[str] = QUEUES) -> list[str]:
    """Take so many shards, finish each, and return their jobs."""
    leases = [w.take(rotations) for _ in range(count)]
    return [lease.shard.job for lease in leases if lease and w.finish(lease)]


def rotation(redis: Redis) -> list[str]:
    return [owner.decode() for owner in redis.zrange(ROTATION_PREFIX + QUEUES[0], 0, -1)]


def test_owners_take_turns(redis):
    post(redis, *(of("ann", f"ann{n}") for n in range(1500)), of("bob", "bob"), of("eve", "eve"))
    assert rotation(redis) == ["ann", "bob", "eve"]
    w = worker(redis)
    assert takes(w, 5) == ["ann0", "bob", "eve", "ann1", "ann2"]
    post(redis, of("bob", "bob1"), of("bob", "bob2"))
    assert takes(w, 4) == ["ann3", "bob1", "ann4", "bob2"]


def test_an_owner_is_in_the_rotation_exactly_while_shards_of_it_wait(redis):
    post(redis, of("ann", "ann"), of("bob", "bob"))
    w = worker(redis, lease_s=60)
    ann = w.take(QUEUES)
    assert rotation(redis) == ["bob"]
    assert w.give_back(ann)
    assert rotation(redis) == ["ann", "bob"], "its turn comes back with the shard"
    ann = w.take(QUEUES)
    redis.zadd(LEASES, {ann.execution.composite_key: 0})
    assert reap(redis) == [("ann-0", "requeued")]
    assert rotation(redis) == ["ann", "bob"]
    assert withdraw("ann-0", redis) == b"removed"
    assert rotation(redis) == ["bob"]
    assert takes(w, 2) == ["bob"]
    assert rotation(redis) == []


def test_a_shard_that_comes_back_is_the_next_one_of_its_owner(redis):
    post(redis, *(of("ann", f"ann{n}") for n in range(3)), of("bob", "bob"))
    w = worker(redis)
    first = w.take(QUEUES)
    assert w.give_back(first)
    assert takes(w, 4) == ["bob", "ann0", "ann1", "ann2"]


def test_withdrawn_shards_are_passed_over(redis):
    post(redis, *(of("ann", f"ann{n}") for n in range(4)))
    redis.hset("rq:job:ann0-0", "status", "canceled")
    redis.delete("rq:job:ann1-0")
    assert takes(worker(redis), 1) == ["ann2"]


def test_a_take_steps_over_thousands_of_stones(redis):
    shards = [of("ann", f"ann{n}") for n in range(3000)]
    post(redis, *shards, of("bob", "bob"))
    for stone in shards[:-1]:
        assert withdraw(stone.id, redis) == b"removed"
    assert redis.llen(f"rq:queue:{shards[0].queue}") == 3000, "nothing was searched for"
    assert redis.hget(STONES, shards[0].queue) == b"2999"
    assert takes(worker(redis), 3) == ["ann2999", "bob"]
    assert not redis.exists(STONES)


def test_the_reaper_clears_a_long_queue_of_stones(redis):
    shards = [of("ann", f"ann{n}") for n in range(1000)]
    post(redis, *shards)
    for stone in shards[:501]:
        withdraw(stone.id, redis)
    sweep(redis)
    assert waiting_of(redis, shards[0]) == [shard.id for shard in shards[501:]]
    for stone in shards[501:751]:
        withdraw(stone.id, redis)
    sweep(redis)
    assert len(waiting_of(redis, shards[0])) == 499, "not for so few"
    for stone in shards[751:]:
        withdraw(stone.id, redis)
    sweep(redis)
    assert (rotation(redis), redis.exists(STONES)) == ([], 0)


def waiting_of(redis: Redis, shard: Shard) -> list[str]:
    return [id.decode() for id in redis.lrange(f"rq:queue:{shard.queue}", 0, -1)]


def test_the_rotation_follows_ids_that_rqs_tools_put_in_or_take_out(redis):
    ann, bob = of("ann", "ann"), of("bob", "bob")
    post(redis, ann, bob)
    redis.delete(f"rq:queue:{ann.queue}")
    redis.delete(ROTATION_PREFIX + QUEUES[0])
    sweep(redis)
    assert rotation(redis) == ["bob"]


def test_queues_of_before_owners_had_their_own_are_taken_over(redis):
    """A service that was upgraded while it stood still: nothing is lost, and the order stays."""
    shards = [of(("ann", "bob")[n % 2], f"j{n:04}") for n in range(2500)]
    post(redis, *shards)
    old = f"rq:queue:{QUEUES[0]}"
    for waits in shards:
        redis.hset(f"rq:job:{waits.id}", "origin", QUEUES[0])
        redis.rpush(old, waits.id)
    redis.delete(*(f"rq:queue:{QUEUES[0]}:{name}" for name in ("ann", "bob")))
    redis.delete("rq:queues", ROTATION_PREFIX + QUEUES[0])
    redis.sadd("rq:queues", old)
    held = shards[-1]
    redis.lrem(old, 1, held.id)
    redis.hset(f"rq:job:{held.id}", "status", "started")
    redis.zadd(f"rq:wip:{QUEUES[0]}", {f"{held.id}:{'0' * 32}": time.time() - 1})
    reaper = Reaper(redis)
    for _ in range(2):
        reaper.run_once()
    assert not redis.exists(old, f"rq:wip:{QUEUES[0]}")
    w = worker(redis)
    assert takes(w, 4) == ["j0000", held.job, "j0002", "j0001"]
    assert sorted(takes(w, 3000)) == [waits.job for waits in shards[3:-1]]


MODELS = ["first", "second", "third"]
ROTATIONS = [rotation_name(priority, model) for priority in Priority for model in MODELS]


def test_a_job_of_any_model_and_class_is_taken_in_its_turn(redis):
    """The first model has 900 jobs before them, and is refilled all the time."""
    post(redis, *(of("ann", f"ann{n}", "first") for n in range(900)))
    post(redis, of("bob", "bob", "second"), of("cy", "cy", "third", "bulk"))
    w = ShardLeases(redis, ROTATIONS)
    jobs = []
    for n in range(50):
        post(redis, of("ann", f"more{n}", "first"))
        jobs += takes(w, 1, ROTATIONS)
    assert jobs.index("bob") <= 1
    assert jobs.index("cy") == FLOOR - 1


def test_one_take_in_eight_is_bulk_while_both_wait_and_models_share_each_class(redis):
    for priority in Priority:
        for model in ("first", "second"):
            post(redis, *(of("ann", f"{priority}-{model}-{n}", model, priority) for n in range(99)))
    jobs = takes(ShardLeases(redis, ROTATIONS), 64, ROTATIONS)
    kinds = Counter(job.rpartition("-")[0] for job in jobs)
    assert kinds == {
        "interactive-first": 28,
        "interactive-second": 28,
        "bulk-first": 4,
        "bulk-second": 4,
    }
    assert [n for n, job in enumerate(jobs) if job.startswith("bulk")] == list(range(7, 64, 8))
