"""What a worker reports, and what that costs Redis: each write waits for the disk, so what is said at once goes out at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
from redis import Redis

from tests.support.loaded import load_tiny
from tests.support.parts import begin, run_to_the_end
from tests.support.parts import post as post_to
from worker.jobs.domain import Recipe, shards_of
from worker.process import loop
from worker.process.job_writer import JobWriter
from worker.process.loop import WorkerLoop
from worker.results.in_redis import InRedis


def reads(redis: Redis) -> int:
    return redis.info("stats")["total_reads_processed"]


def test_the_progress_of_all_shards_of_a_worker_is_one_write(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    job = post(count=1024, steps=10)
    recipe = Recipe("tiny", "ab" * 32, "ddpm", 10, "fixed_small", 0.0, 1)
    shards = list(shards_of(job["id"], recipe, 0, 1024, "local", "interactive"))
    results = JobWriter(redis, InRedis())
    results.start(shards[0], 1)
    results.progress([(shards[0], 0, 0)])
    before = reads(redis)
    told = results.progress(
        [(shard, 5, 320) for shard in shards] + [(replace(shards[0], job="0" * 32), 5, 320)]
    )
    assert reads(redis) - before < len(shards) / 2, "one write for each would be 17"
    assert told == [True] * 16 + [False], "each is told whether it is still wanted"
    now = api.get(job["links"]["self"]).json()
    assert (now["progress"]["step"], now["progress"]["fraction"]) == (5, 0.5)


def test_a_worker_tells_of_the_shards_that_have_come_on_and_now_and_then_of_all(
    redis, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "PROGRESS_EVERY_S", 0)
    model = load_tiny(tmp_path)
    worker = WorkerLoop(redis, {"tiny": model}, "cpu", InRedis())
    worker._shards.beat()
    first = post_to(redis, model, count=65, steps=4)
    second = replace(first, number=1, first=64, count=1)
    begin(worker, first, [0, 1])
    begin(worker, second, [64])
    told: list[list[str]] = []
    monkeypatch.setattr(
        worker._outbox,
        "report",
        lambda reports: told.append([lease.shard.id for lease, *_ in reports]),
    )

    def step(chains: list[tuple[str, int]]) -> list[str]:
        model.engine.step(chains)
        worker._report()
        return told.pop()

    assert sorted(step([(first.id, 0)])) == [first.id, second.id], "the first report tells of all"
    assert step([(first.id, 1)]) == [first.id]
    assert step([(second.id, 64)]) == [second.id]
    assert step([]) == []
    monkeypatch.setattr(loop, "_TELL_ALL_EVERY_S", 0)
    assert sorted(step([])) == [first.id, second.id]
    monkeypatch.undo()
    run_to_the_end(worker)
