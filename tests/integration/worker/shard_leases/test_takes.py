"""What a worker takes: whose shard, and what it has of a take whose answer is lost."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from tests.support.shards import LEASE_S, QUEUES, post, rescue, shard, taken, waiting, worker
from worker.jobs.domain import Shard
from worker.process.shard_leases import OwnerLimit, ShardLeases


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


def of(owner: str, job: str) -> Shard:
    return replace(shard(job), owner=owner)


def test_of_interactive_shards_one_whose_owner_has_least_goes_first(redis):
    post(redis, *(of("ann", f"ann{n}") for n in range(100)), of("bob", "bob"), of("eve", "eve"))
    w = worker(redis)
    assert w.take(QUEUES, {}).shard.job == "ann0"
    assert w.take(QUEUES, {"ann": 64}).shard.job == "bob"
    assert w.take(QUEUES, {"ann": 64, "bob": 64}).shard.job == "eve"
    assert w.take(QUEUES, {"ann": 64, "bob": 64, "eve": 1}).shard.job == "ann1"
    assert waiting(redis) == [f"ann{n}-0" for n in range(2, 100)]


def test_of_an_owner_who_holds_more_than_the_limit_only_small_shards_are_taken(redis):
    sizes = {"big": 64, "middling": 3, "small": 2}
    post(
        redis,
        *(replace(of("ann", job), count=count) for job, count in sizes.items()),
        of("bob", "bob"),
    )
    w, limits = worker(redis), dict.fromkeys(QUEUES, OwnerLimit(most=64, small=2))
    assert w.take(QUEUES, {"ann": 65}, limits).shard.job == "bob"
    assert w.take(QUEUES, {"ann": 65, "bob": 1}, limits).shard.job == "small"
    assert w.take(QUEUES, {"ann": 65}, limits) is None
    assert w.take(QUEUES, {"ann": 64}, limits).shard.job == "big"


def test_of_one_owners_shards_the_first_goes_first_and_withdrawn_ones_are_passed_over(redis):
    post(redis, *(of("ann", f"ann{n}") for n in range(4)))
    redis.hset("rq:job:ann0-0", "status", "canceled")
    redis.delete("rq:job:ann1-0")
    assert worker(redis).take(QUEUES, {"ann": 64}).shard.job == "ann2"
    assert waiting(redis) == ["ann3-0"]


def test_bulk_shards_go_as_they_came(redis):
    post(redis, *(replace(of(owner, owner), job_priority="bulk") for owner in ("ann", "bob")))
    assert worker(redis).take(QUEUES, {"ann": 64}).shard.job == "ann"
