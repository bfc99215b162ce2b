"""Results of a worker whose results store is there, slow, or away."""

from __future__ import annotations

from dataclasses import replace
from queue import SimpleQueue
from typing import Any, cast

import pytest
import torch

from tests.support.jobs import make_recipe, make_shard
from worker.jobs.domain import Shard
from worker.process.job_writer import ShardResults
from worker.process.result_sender import ResultBatch, ResultSender
from worker.process.shard_leases import Execution, Lease
from worker.results.store import StoreFault

SHARD = make_shard(make_recipe(steps=1), job="job", count=1)


def lease_of(shard: Shard) -> Lease:
    return Lease(shard, Execution("e", shard.id, shard.queue))


def one_image() -> list[tuple[int, torch.Tensor]]:
    return [(0, torch.zeros(1, 4, 4, dtype=torch.uint8))]


class Writer:
    """A job writer whose results store is away for a number of calls."""

    external = False

    def __init__(self, away_calls: int = 0) -> None:
        self.away_calls = away_calls
        self.published = 0
        self.reported: list[list[tuple[str, int, int]]] = []
        self.results: list[list[ShardResults]] = []

    def progress(self, reports: list[tuple[Shard, int, int]]) -> list[bool]:
        self.reported.append([(shard.id, least, steps) for shard, least, steps in reports])
        return [True] * len(reports)

    def forget_stored(self, _shard: Shard) -> None: ...

    def publish_all(self, results: list[ShardResults]) -> list[bool]:
        self.away_calls -= 1
        if self.away_calls >= 0:
            raise StoreFault("the results store is away")
        self.published += 1
        self.results.append(results)
        return [True] * len(results)


class Shards:
    def __init__(self) -> None:
        self.finished: list[Lease] = []

    def finish_all(self, leases: list[Lease]) -> list[str]:
        self.finished += leases
        return ["finished"] * len(leases)


def sender_to(writer: Writer, **options: Any) -> tuple[ResultSender, Shards]:
    """Return a sender to which the only image of a shard was posted."""
    shards = Shards()
    sender = ResultSender(cast("Any", shards), cast("Any", writer), SimpleQueue(), **options)
    sender.post(ResultBatch(lease_of(SHARD), one_image(), last=True))
    return sender, shards


def test_a_batch_stays_until_the_store_has_it_and_its_shard_with_it() -> None:
    writer = Writer(away_calls=2)
    sender, shards = sender_to(writer)
    for _ in range(2):
        with pytest.raises(StoreFault):
            sender.run_once()
    assert shards.finished == []
    sender.run_once()
    assert (writer.published, len(shards.finished)) == (1, 1)


def test_a_sender_is_full_of_bytes_until_the_store_has_them() -> None:
    sender, _ = sender_to(Writer(), full_bytes=16)
    assert sender.is_full()
    sender.run_once()
    assert not sender.is_full()


def test_a_sender_says_once_that_it_is_full_no_longer() -> None:
    """An intake that waits for it would else find out when it asks again."""
    said: list[str] = []
    sender, _ = sender_to(Writer(), full_images=1, has_room=lambda: said.append("room"))
    assert said == []
    sender.run_once()
    assert said == ["room"]
    sender.post(ResultBatch(lease_of(SHARD), last=True))
    sender.run_once()
    assert said == ["room"]


@pytest.mark.parametrize(("full_images", "is_full"), [(1, True), (2, False)])
def test_a_sender_is_full_of_many_small_images(full_images: int, is_full: bool) -> None:
    sender, _ = sender_to(Writer(), full_images=full_images)
    assert sender.is_full() is is_full


def test_a_worker_that_stops_while_the_store_is_away_says_what_it_leaves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sender, shards = sender_to(Writer(away_calls=1))
    sender.flush()
    assert shards.finished == []
    assert "1 batches of finished images are left for another worker" in caplog.text


def test_the_newest_report_of_each_shard_is_sent() -> None:
    writer = Writer()
    sender, _ = sender_to(writer)
    sender.run_once()
    one, two = (lease_of(replace(SHARD, number=number)) for number in (1, 2))
    sender.report([(one, 1, 1), (two, 1, 1)])
    sender.report([(one, 2, 2)])
    sender.run_once()
    assert writer.reported == [[("job-1", 2, 2), ("job-2", 1, 1)]]
    sender.report([(one, 3, 3), (two, 2, 2)])
    sender.post(ResultBatch(two, last=True))
    sender.run_once()
    assert writer.reported[1:] == [[("job-1", 3, 3)]]


def test_progress_is_reported_between_the_batches_of_a_slow_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer()
    sender, _ = sender_to(writer, progress_every_s=0)
    other = lease_of(replace(SHARD, number=1))
    monkeypatch.setattr(writer, "external", True)
    publish_all = writer.publish_all

    def slow(results: list[ShardResults]) -> list[bool]:
        sender.report([(other, writer.published, 0)])
        return publish_all(results)

    monkeypatch.setattr(writer, "publish_all", slow)
    for _ in range(2):
        sender.post(ResultBatch(other, one_image()))
    sender.run_once()
    assert [least for reports in writer.reported for _, least, _ in reports] == [0, 1, 2]


def test_batches_that_wait_are_sent_together_and_those_of_a_shard_as_one() -> None:
    writer = Writer()
    sender, shards = sender_to(writer)
    other = lease_of(replace(SHARD, number=1, count=2))
    sender.post(ResultBatch(other, [(1, torch.zeros(1, 4, 4, dtype=torch.uint8))]))
    sender.post(ResultBatch(other, [(2, torch.ones(1, 4, 4, dtype=torch.uint8))], last=True))
    sender.run_once()
    [together] = writer.results
    assert [(r.shard.id, [i for i, _ in r.images], r.last) for r in together] == [
        ("job-0", [0], True),
        ("job-1", [1, 2], True),
    ]
    assert [lease.shard.id for lease in shards.finished] == ["job-0", "job-1"]


def test_a_worker_that_stops_sends_nothing_more_when_its_time_is_up() -> None:
    writer = Writer()
    ticks = iter(range(1000))
    sender, shards = sender_to(writer, clock=lambda: float(next(ticks)), together=1)
    for number in range(1, 9):
        sender.post(ResultBatch(lease_of(replace(SHARD, number=number)), one_image(), last=True))
    sender.flush(within_s=6.0)
    assert 0 < len(shards.finished) < 9
    sender.flush(within_s=100.0)
    assert len(shards.finished) == 9
