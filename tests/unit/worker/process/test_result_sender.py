from __future__ import annotations

from dataclasses import replace
from queue import SimpleQueue
from typing import Any, cast

import pytest
import torch

from worker.jobs.domain import Recipe, Shard
from worker.process.result_sender import ResultBatch, ResultSender
from worker.process.shard_leases import Lease
from worker.results.store import StoreFault

SHARD = Shard(
    "job",
    0,
    0,
    1,
    "local",
    "interactive",
    Recipe("tiny", "ab" * 32, "ddpm", 1, "fixed_small", 0.0, 1),
)


class Away:
    """Results whose store is away for a number of calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.published = calls, 0
        self.told: list[list[tuple[str, int, int]]] = []

    def progress(self, reports: list[tuple[Shard, int, int]]) -> list[bool]:
        self.told.append([(shard.id, least, image_steps) for shard, least, image_steps in reports])
        return [True] * len(reports)

    def settled(self, _shard: Shard) -> bool:
        return self.published > 0

    def forget(self, _shard: Shard) -> None: ...

    def publish(self, _shard: Shard, _images: object, _last: bool) -> bool:
        self.calls -= 1
        if self.calls >= 0:
            raise StoreFault("the results store is away")
        self.published += 1
        return True


class Shards:
    def __init__(self) -> None:
        self.finished: list[Lease] = []

    def finish(self, lease: Lease) -> bool:
        self.finished.append(lease)
        return True


def outbox(results: Away) -> tuple[ResultSender, Shards]:
    shards = Shards()
    box = ResultSender(cast("Any", shards), cast("Any", results), SimpleQueue())
    lease = Lease(SHARD, *cast("Any", (None, None, None)))
    box.post(ResultBatch(lease, [(0, torch.zeros(1, 4, 4, dtype=torch.uint8))], last=True))
    return box, shards


def test_a_parcel_stays_until_the_store_has_it_and_its_shard_is_not_finished_before() -> None:
    results = Away(calls=2)
    box, shards = outbox(results)
    for _ in range(2):
        with pytest.raises(StoreFault):
            box.run_once()
    assert shards.finished == []
    box.run_once()
    assert (results.published, len(shards.finished)) == (1, 1)


def test_an_outbox_is_full_of_bytes_until_the_store_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.process.result_sender._FULL_BYTES", 16)
    box, _ = outbox(Away(calls=0))
    assert box.is_full()
    box.run_once()
    assert not box.is_full()


def test_a_worker_that_stops_while_the_store_is_away_says_what_it_leaves_and_finishes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    box, shards = outbox(Away(calls=1))
    box.flush()
    assert shards.finished == []
    assert "1 parcels of finished images are left for another worker" in caplog.text


def test_of_what_is_reported_before_it_is_sent_the_newest_of_each_shard_is_told() -> None:
    results = Away(calls=0)
    box, _ = outbox(results)
    box.run_once()
    one, two = (
        Lease(replace(SHARD, number=number), *cast("Any", (None, None, None))) for number in (1, 2)
    )
    box.report([(one, 1, 1), (two, 1, 1)])
    box.report([(one, 2, 2)])
    box.run_once()
    assert results.told == [[("job-1", 2, 2), ("job-2", 1, 1)]]
    box.report([(one, 3, 3), (two, 2, 2)])
    box.post(ResultBatch(two, last=True))
    box.run_once()
    assert results.told[1:] == [[("job-1", 3, 3)]]


def test_progress_is_told_between_the_parcels_of_a_slow_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.process.result_sender.PROGRESS_EVERY_S", 0)
    results = Away(calls=0)
    box, _ = outbox(results)
    other = Lease(replace(SHARD, number=1), *cast("Any", (None, None, None)))
    publish = results.publish

    def slow(*parcel: Any) -> bool:
        box.report([(other, results.published, 0)])
        return publish(*parcel)

    monkeypatch.setattr(results, "publish", slow)
    for _ in range(2):
        box.post(ResultBatch(other, [(0, torch.zeros(1, 4, 4, dtype=torch.uint8))]))
    box.run_once()
    assert [least for told in results.told for _, least, _ in told] == [0, 1, 2]


def test_it_is_full_of_many_small_pictures_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    box, _ = outbox(Away(calls=1))
    assert not box.is_full()
    monkeypatch.setattr("worker.process.result_sender._FULL_IMAGES", 1)
    assert box.is_full()
