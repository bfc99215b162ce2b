"""Which shard a worker takes, and what becomes of a take whose answer is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis import Redis

from tests.support.shards import (
    MODEL,
    QUEUES,
    RECIPE,
    lapse,
    post,
    reap_all,
    shard,
    taken,
    waiting,
    worker,
)
from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import ROTATION_PREFIX, STONES, rotation_name
from worker.jobs.policy import FLOOR
from worker.jobs.reaper import Reaper
from worker.jobs.shard_queue import MAX_LOSSES, sweep, withdraw
from worker.process.shard_leases import SUSPECTS_AT_ONCE, ShardLeases

LoseTheAnswer = Callable[..., None]


@pytest.fixture
def lose_the_answer(monkeypatch: pytest.MonkeyPatch) -> LoseTheAnswer:
    """`lose_the_answer(leases)`: the server runs a take, and its worker gets no answer.

    A second argument is the take itself, unless it is of one shard.
    """

    def lose(leases: ShardLeases, take: Callable[[], object] | None = None) -> None:
        send = leases.connection.execute_command

        def unanswered(*command: Any, **options: Any) -> None:
            send(*command, **options)
            raise TimeoutError("no answer")

        with monkeypatch.context() as broken:
            broken.setattr(leases.connection, "execute_command", unanswered)
            with pytest.raises(TimeoutError):
                (take or partial(leases.take, QUEUES))()

    return lose


def test_a_worker_whose_take_was_not_answered_gets_the_same_shard_again(
    redis: Redis, lose_the_answer: LoseTheAnswer
) -> None:
    post(redis, shard("a"), shard("b"))
    leases = worker(redis)
    lose_the_answer(leases)
    lease = leases.take([])  # nothing more is wanted by now
    assert (lease.shard, leases.holds(lease), leases.heartbeat()) == (shard("a"), True, [])
    assert taken(leases) == "b", "and the next one is another"
    assert leases.take(QUEUES) is None
    leases.close()
    assert waiting(redis) == ["a-0", "b-0"]


def test_a_worker_that_stops_gives_back_a_take_that_was_not_answered(
    redis: Redis, lose_the_answer: LoseTheAnswer
) -> None:
    post(redis, shard("a"))
    leases = worker(redis)
    lose_the_answer(leases)
    leases.close()
    assert waiting(redis) == ["a-0"]
    assert taken(worker(redis)) == "a"


def test_a_take_that_got_nothing_and_was_not_answered_is_asked_again(
    redis: Redis, lose_the_answer: LoseTheAnswer
) -> None:
    leases = worker(redis)
    lose_the_answer(leases)
    assert leases.take([]) is None
    post(redis, shard("a"))
    assert taken(leases) == "a"


def test_a_take_that_the_server_runs_again_later_takes_no_second_shard(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command waited in a stalled server, and its worker has asked anew meanwhile."""
    post(redis, shard("a"), shard("b"))
    leases = worker(redis)
    sent: list[tuple[Any, ...]] = []
    send = redis.execute_command
    with monkeypatch.context() as overheard:
        overheard.setattr(
            leases.connection,
            "execute_command",
            lambda *command: sent.append(command) or send(*command),
        )
        assert taken(leases) == "a"
    assert send(*sent[-1])[1] == b"a-0"
    assert waiting(redis) == ["b-0"]


def test_a_shard_that_lapsed_before_its_taker_asked_again_is_somebody_elses(
    redis: Redis, lose_the_answer: LoseTheAnswer
) -> None:
    post(redis, shard("a"))
    leases, other = worker(redis), worker(redis)
    lose_the_answer(leases)
    lapse(redis)
    assert reap_all(redis) == [("a-0", "requeued")]
    assert taken(other) == "a"
    assert leases.take(QUEUES) is None


def test_one_take_brings_up_to_so_many_shards_and_the_same_ones_if_asked_again(
    redis: Redis, lose_the_answer: LoseTheAnswer
) -> None:
    post(redis, *(replace(shard(job), count=1) for job in "abcdef"))
    leases, rooms = worker(redis), {QUEUES[0]: 64 + 3}
    lose_the_answer(leases, lambda: leases.take_up_to(8, rooms))
    assert [lease.shard.job for lease in leases.take_up_to(8, {})] == list("abcd"), (
        "as there was room"
    )
    assert [lease.shard.job for lease in leases.take_up_to(1, rooms)] == ["e"]
    assert len(leases.leases) == 5
    leases.close()
    assert waiting(redis) == [f"{job}-0" for job in "abcdef"]


def test_a_take_of_large_shards_leaves_the_next_ones_to_other_workers(redis: Redis) -> None:
    post(redis, *(replace(shard(str(n)), count=count) for n, count in enumerate([1, 63, 64, 64])))
    leases, rooms = worker(redis), {QUEUES[0]: 1024}
    takes = [[lease.shard.count for lease in leases.take_up_to(8, rooms)] for _ in range(3)]
    assert takes == [[1, 63], [64], [64]]


def test_a_shard_with_two_losses_is_the_last_one_of_a_take(redis: Redis) -> None:
    post(redis, *(replace(shard(job), count=1) for job in "abc"))
    redis.hset("rq:job:b-0", "retries_left", 1)
    leases = worker(redis).take_up_to(8, {QUEUES[0]: 1024})
    assert [(lease.shard.job, lease.suspect) for lease in leases] == [("a", False), ("b", True)]


@pytest.mark.parametrize("losses_of_next", [0, 2])
def test_shards_with_one_loss_are_taken_together_and_without_others(
    redis: Redis, losses_of_next: int
) -> None:
    """All that a worker held when it was lost: one of them may be at fault."""
    post(redis, *(replace(of("ann", f"ann{n}"), count=1) for n in range(40)))
    post(redis, replace(of("bob", "bob"), count=1))
    first, leases = worker(redis), worker(redis)
    held = [first.take(QUEUES) for _ in range(41)]
    assert {lease.shard.owner for lease in held} == {"ann", "bob"}
    lapse(redis)
    reap_all(redis)
    redis.hset("rq:job:ann39-0", "retries_left", MAX_LOSSES - losses_of_next)
    rooms = {QUEUES[0]: 1024}
    takes = []
    for _ in range(5):
        taken = leases.take_up_to(64, rooms)
        takes.append([lease.shard.job for lease in taken])
        assert all(leases.finish(lease) for lease in taken)
    assert [len(take) for take in takes] == [
        SUSPECTS_AT_ONCE,
        SUSPECTS_AT_ONCE,
        40 - 2 * SUSPECTS_AT_ONCE,
        1,
        0,
    ]
    assert takes[3] == ["ann39"]


def of(owner: str, job: str, model: str = MODEL, priority: str = "interactive") -> Shard:
    return replace(shard(job, priority), owner=owner, recipe=replace(RECIPE, model=model))


def takes(leases: ShardLeases, count: int, rotations: list[str] = QUEUES) -> list[str]:
    """Take so many shards, finish each, and return their jobs."""
    held = [leases.take(rotations) for _ in range(count)]
    return [lease.shard.job for lease in held if lease and leases.finish(lease)]


def rotation(redis: Redis) -> list[str]:
    return [owner.decode() for owner in redis.zrange(ROTATION_PREFIX + QUEUES[0], 0, -1)]


def test_owners_take_turns(redis: Redis) -> None:
    post(redis, *(of("ann", f"ann{n}") for n in range(1500)), of("bob", "bob"), of("eve", "eve"))
    assert rotation(redis) == ["ann", "bob", "eve"]
    leases = worker(redis)
    assert takes(leases, 5) == ["ann0", "bob", "eve", "ann1", "ann2"]
    post(redis, of("bob", "bob1"), of("bob", "bob2"))
    assert takes(leases, 4) == ["ann3", "bob1", "ann4", "bob2"]


def test_an_owner_is_in_the_rotation_exactly_while_shards_of_it_wait(redis: Redis) -> None:
    post(redis, of("ann", "ann"), of("bob", "bob"))
    leases = worker(redis)
    ann = leases.take(QUEUES)
    assert rotation(redis) == ["bob"]
    assert leases.give_back(ann)
    assert rotation(redis) == ["ann", "bob"], "its turn comes back with the shard"
    ann = leases.take(QUEUES)
    lapse(redis)
    assert reap_all(redis) == [("ann-0", "requeued")]
    assert rotation(redis) == ["ann", "bob"]
    assert withdraw("ann-0", redis) == b"removed"
    assert rotation(redis) == ["bob"]
    assert takes(leases, 2) == ["bob"]
    assert rotation(redis) == []


def test_a_shard_that_comes_back_is_the_next_one_of_its_owner(redis: Redis) -> None:
    post(redis, *(of("ann", f"ann{n}") for n in range(3)), of("bob", "bob"))
    leases = worker(redis)
    first = leases.take(QUEUES)
    assert leases.give_back(first)
    assert takes(leases, 4) == ["bob", "ann0", "ann1", "ann2"]


def test_withdrawn_shards_are_passed_over(redis: Redis) -> None:
    post(redis, *(of("ann", f"ann{n}") for n in range(4)))
    redis.hset("rq:job:ann0-0", "status", "canceled")
    redis.delete("rq:job:ann1-0")
    assert takes(worker(redis), 1) == ["ann2"]


def test_a_take_steps_over_thousands_of_stones(redis: Redis) -> None:
    shards = [of("ann", f"ann{n}") for n in range(3000)]
    post(redis, *shards, of("bob", "bob"))
    for stone in shards[:-1]:
        assert withdraw(stone.id, redis) == b"removed"
    assert redis.llen(f"rq:queue:{shards[0].queue}") == 3000, "nothing was searched for"
    assert redis.hget(STONES, shards[0].queue) == b"2999"
    assert takes(worker(redis), 3) == ["ann2999", "bob"]
    assert not redis.exists(STONES)


def test_the_reaper_clears_a_long_queue_of_stones(redis: Redis) -> None:
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


def test_the_rotation_follows_ids_that_rqs_tools_put_in_or_take_out(redis: Redis) -> None:
    ann, bob = of("ann", "ann"), of("bob", "bob")
    post(redis, ann, bob)
    redis.delete(f"rq:queue:{ann.queue}")
    redis.delete(ROTATION_PREFIX + QUEUES[0])
    sweep(redis)
    assert rotation(redis) == ["bob"]


def test_queues_of_before_owners_had_their_own_are_taken_over(redis: Redis) -> None:
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
    leases = worker(redis)
    assert takes(leases, 4) == ["j0000", held.job, "j0002", "j0001"]
    assert sorted(takes(leases, 3000)) == [waits.job for waits in shards[3:-1]]


MODELS = ["first", "second", "third"]
ROTATIONS = [rotation_name(priority, model) for priority in Priority for model in MODELS]


def test_a_job_of_any_model_and_class_is_taken_in_its_turn(redis: Redis) -> None:
    """The first model has 900 jobs before them, and is refilled all the time."""
    post(redis, *(of("ann", f"ann{n}", "first") for n in range(900)))
    post(redis, of("bob", "bob", "second"), of("cy", "cy", "third", "bulk"))
    leases = ShardLeases(redis, ROTATIONS)
    jobs = []
    for n in range(50):
        post(redis, of("ann", f"more{n}", "first"))
        jobs += takes(leases, 1, ROTATIONS)
    assert jobs.index("bob") <= 1
    assert jobs.index("cy") == FLOOR - 1


def test_one_take_in_eight_is_bulk_while_both_wait_and_models_share_each_class(
    redis: Redis,
) -> None:
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
