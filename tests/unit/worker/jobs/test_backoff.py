from __future__ import annotations

import pytest

from worker.jobs.backoff import Backoff

DOUBLING = Backoff(first_s=0.2, longest_s=3.0)


def test_pauses_grow_from_the_first_to_the_longest() -> None:
    pauses = DOUBLING.pauses()
    assert [pauses.next_s() for _ in range(6)] == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]


def test_pauses_begin_again_after_a_reset() -> None:
    pauses = DOUBLING.pauses()
    for _ in range(5):
        pauses.next_s()
    pauses.reset()
    assert [pauses.next_s(), pauses.next_s()] == [0.2, 0.4]


@pytest.mark.parametrize(
    ("failures", "pause_s"), [(1, 5), (2, 20), (6, 5120), (7, 7200), (10**9, 7200)]
)
def test_a_pause_follows_from_the_number_of_failures(failures: int, pause_s: float) -> None:
    assert Backoff(first_s=5, longest_s=7200, factor=4).pause_s(failures) == pause_s


def test_a_pause_can_grow_from_any_length() -> None:
    assert [DOUBLING.longer_s(pause_s) for pause_s in (0.7, 2.9, 9.0)] == [1.4, 3.0, 3.0]


def test_jitter_spreads_pauses_around_their_length() -> None:
    backoff = Backoff(first_s=10, longest_s=10, jitter=0.2)
    pauses = [backoff.pause_s(1) for _ in range(200)]
    assert len(set(pauses)) > 1
    assert all(8 <= pause_s <= 12 for pause_s in pauses)


def test_callers_of_one_policy_count_their_own_failures() -> None:
    one, other = DOUBLING.pauses(), DOUBLING.pauses()
    one.next_s()
    assert (one.next_s(), other.next_s()) == (0.4, 0.2)
