"""Which shard a worker takes, and what becomes of a take whose answer is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from tests.support.shards import QUEUES, lapse, post, reap_all, shard, taken, waiting, worker
from worker.jobs.domain import Shard
from worker.process.shard_leases import OwnerLimit, ShardLeases

LoseTheAnswer = Callable[[ShardLeases], None]


@pytest.fixture
def lose_the_answer(monkeypatch: pytest.MonkeyPatch) -> LoseTheAnswer:
    """`lose_the_answer(leases)`: the server runs a take, and its worker gets no answer."""

    def lose(leases: ShardLeases) -> None:
        send = leases.connection.execute_command

        def unanswered(*command: Any, **options: Any) -> None:
            send(*command, **options)
            raise TimeoutError("no answer")

        with monkeypatch.context() as broken:
            broken.setattr(leases.connection, "execute_command", unanswered)
            with pytest.raises(TimeoutError):
                leases.take(QUEUES)

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


def owned(owner: str, job: str) -> Shard:
    return replace(shard(job), owner=owner)


def test_the_interactive_shard_whose_owner_has_least_goes_first(redis: Redis) -> None:
    jobs = [f"ann{n}" for n in range(100)]
    post(redis, *(owned("ann", job) for job in jobs), owned("bob", "bob"), owned("eve", "eve"))
    leases = worker(redis)
    assert leases.take(QUEUES, {}).shard.job == "ann0"
    assert leases.take(QUEUES, {"ann": 64}).shard.job == "bob"
    assert leases.take(QUEUES, {"ann": 64, "bob": 64}).shard.job == "eve"
    assert leases.take(QUEUES, {"ann": 64, "bob": 64, "eve": 1}).shard.job == "ann1"
    assert waiting(redis) == [f"{job}-0" for job in jobs[2:]]


def test_an_owner_over_the_limit_gets_only_small_shards(redis: Redis) -> None:
    sizes = {"big": 64, "middling": 3, "small": 2}
    shards = [replace(owned("ann", job), count=count) for job, count in sizes.items()]
    post(redis, *shards, owned("bob", "bob"))
    leases, limits = worker(redis), dict.fromkeys(QUEUES, OwnerLimit(most=64, small=2))
    assert leases.take(QUEUES, {"ann": 65}, limits).shard.job == "bob"
    assert leases.take(QUEUES, {"ann": 65, "bob": 1}, limits).shard.job == "small"
    assert leases.take(QUEUES, {"ann": 65}, limits) is None
    assert leases.take(QUEUES, {"ann": 64}, limits).shard.job == "big"


def test_shards_of_one_owner_go_in_their_order_without_withdrawn_ones(redis: Redis) -> None:
    post(redis, *(owned("ann", f"ann{n}") for n in range(4)))
    redis.hset("rq:job:ann0-0", "status", "canceled")
    redis.delete("rq:job:ann1-0")
    assert worker(redis).take(QUEUES, {"ann": 64}).shard.job == "ann2"
    assert waiting(redis) == ["ann3-0"]


def test_bulk_shards_go_as_they_came(redis: Redis) -> None:
    post(redis, *(replace(owned(owner, owner), job_priority="bulk") for owner in ("ann", "bob")))
    assert worker(redis).take(QUEUES, {"ann": 64}).shard.job == "ann"
