"""Progress that a worker reports, and what that costs Redis.

Each write waits for the disk, so what is reported together is written together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
from redis import Redis

from tests.support import parts
from tests.support.clock import SimulatedClock
from tests.support.jobs import make_recipe, make_shards
from tests.support.loaded import load_tiny
from tests.support.parts import begin, build_worker, run_to_the_end
from worker.process.job_writer import JobWriter
from worker.process.loop import REPORT_ALL_EVERY_S
from worker.process.result_sender import PROGRESS_EVERY_S
from worker.results.in_redis import InRedis


def reads(redis: Redis) -> int:
    return redis.info("stats")["total_reads_processed"]


def test_the_progress_of_all_shards_of_a_worker_is_one_write(
    api: httpx.Client, redis: Redis, post: Callable[..., dict[str, Any]]
):
    job = post(count=1024, steps=10)
    shards = make_shards(make_recipe(steps=10), job=job["id"], count=1024)
    of_a_job_that_is_gone = replace(shards[0], job="0" * 32)
    writer = JobWriter(redis, InRedis())
    writer.start(shards[0], 1)
    writer.progress([(shards[0], 0, 0)])
    before = reads(redis)
    wanted = writer.progress([(shard, 5, 320) for shard in [*shards, of_a_job_that_is_gone]])
    assert reads(redis) - before < len(shards) / 2, "one write for each would be 17"
    assert wanted == [True] * 16 + [False]
    progress = api.get(job["links"]["self"]).json()["progress"]
    assert (progress["step"], progress["fraction"]) == (5, 0.5)


def test_progress_is_reported_of_shards_that_have_stepped_and_at_times_of_all(
    redis, tmp_path, monkeypatch
):
    clock = SimulatedClock()
    model = load_tiny(tmp_path)
    worker = build_worker(redis, model, clock=clock)
    first = parts.post(redis, model, count=65, steps=4)
    second = replace(first, number=1, first=64, count=1)
    begin(worker, first, [0, 1])
    begin(worker, second, [64])
    reported: list[list[str]] = []
    monkeypatch.setattr(
        worker.parts.sender,
        "report",
        lambda reports: reported.append([lease.shard.id for lease, *_ in reports]),
    )

    def step(chains: list[tuple[str, int]]) -> list[str]:
        model.engine.step(chains)
        clock.pass_s(2 * PROGRESS_EVERY_S)
        worker.report()
        return sorted(reported.pop())

    assert step([(first.id, 0)]) == [first.id, second.id], "the first report is of all"
    assert step([(first.id, 1)]) == [first.id]
    assert step([(second.id, 64)]) == [second.id]
    assert step([]) == []
    clock.pass_s(REPORT_ALL_EVERY_S)
    assert step([]) == [first.id, second.id]
    monkeypatch.undo()
    run_to_the_end(worker)


def test_the_reports_of_many_shards_are_further_apart(redis, tmp_path, monkeypatch):
    clock = SimulatedClock()
    model = load_tiny(tmp_path)
    worker = build_worker(redis, model, clock=clock)
    begin(worker, parts.post(redis, model, count=1, steps=8), [0])
    monkeypatch.setattr("worker.process.loop.REPORTS_PER_S", 2)
    reported: list[int] = []
    monkeypatch.setattr(
        worker.parts.sender, "report", lambda reports: reported.append(len(list(reports)))
    )
    for _ in range(7):
        model.engine.step()
        clock.pass_s(0.2)
        worker.report()
    assert reported == [1, 1, 1], "at 0.2, 0.8 and 1.4 s: one shard, and two reports a second"
    monkeypatch.undo()
    run_to_the_end(worker)
