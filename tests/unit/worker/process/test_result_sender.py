"""Results of a worker whose results store is there, slow, or away."""

from __future__ import annotations

from dataclasses import replace
from queue import SimpleQueue
from typing import Any, cast

import pytest
import torch

from tests.support.jobs import make_recipe, make_shard
from worker.jobs.domain import Shard
from worker.process.result_sender import ResultBatch, ResultSender
from worker.process.shard_leases import Lease
from worker.results.store import StoreFault

SHARD = make_shard(make_recipe(steps=1), job="job", count=1)


def lease_of(shard: Shard) -> Lease:
    return Lease(shard, *cast("Any", (None, None, None)))


def one_image() -> list[tuple[int, torch.Tensor]]:
    return [(0, torch.zeros(1, 4, 4, dtype=torch.uint8))]


class Writer:
    """A job writer whose results store is away for a number of calls."""

    def __init__(self, away_calls: int = 0) -> None:
        self.away_calls = away_calls
        self.published = 0
        self.reported: list[list[tuple[str, int, int]]] = []

    def progress(self, reports: list[tuple[Shard, int, int]]) -> list[bool]:
        self.reported.append([(shard.id, least, steps) for shard, least, steps in reports])
        return [True] * len(reports)

    def settled(self, _shard: Shard) -> bool:
        return self.published > 0

    def forget(self, _shard: Shard) -> None: ...

    def publish(self, _shard: Shard, _images: object, _last: bool) -> bool:
        self.away_calls -= 1
        if self.away_calls >= 0:
            raise StoreFault("the results store is away")
        self.published += 1
        return True


class Shards:
    def __init__(self) -> None:
        self.finished: list[Lease] = []

    def finish(self, lease: Lease) -> bool:
        self.finished.append(lease)
        return True


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
    publish = writer.publish

    def slow(*batch: Any) -> bool:
        sender.report([(other, writer.published, 0)])
        return publish(*batch)

    monkeypatch.setattr(writer, "publish", slow)
    for _ in range(2):
        sender.post(ResultBatch(other, one_image()))
    sender.run_once()
    assert [least for reports in writer.reported for _, least, _ in reports] == [0, 1, 2]
