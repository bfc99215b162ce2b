"""The number of threads, in calculated time."""

from __future__ import annotations

from collections.abc import Callable

from worker.calibration.adaptive_threads import AdaptiveThreads

# what a promised second takes, by the number of threads
QUIET: Callable[[int], float] = {2: 1.0, 1: 1.2}.__getitem__
CROWDED: Callable[[int], float] = {2: 4.0, 1: 2.0}.__getitem__


def work(
    threads: AdaptiveThreads, seconds: float, slowed: Callable[[int], float]
) -> dict[int, float]:
    """Spend seconds in steps of ten promised milliseconds, and count them by threads."""
    spent = {1: 0.0, 2: 0.0}
    while sum(spent.values()) < seconds:
        count = threads.count
        took = 0.01 * slowed(count)
        spent[count] += took
        threads.note(took, 0.01)
    return spent


def test_the_calibrated_number_is_used_while_it_keeps_its_promise():
    assert work(AdaptiveThreads(2, 1), 60, QUIET)[1] == 0


def test_fewer_threads_are_used_within_a_second_of_another_process():
    threads = AdaptiveThreads(2, 1)
    work(threads, 1, CROWDED)
    assert work(threads, 0.5, CROWDED)[2] == 0


def test_a_moment_of_slowness_starts_no_trial():
    threads = AdaptiveThreads(2, 1)
    work(threads, 0.25, CROWDED)
    assert work(threads, 60, QUIET)[1] == 0


def test_fewer_taken_in_error_are_left_within_two_seconds():
    threads = AdaptiveThreads(2, 1)
    work(threads, 0.52, CROWDED)
    work(threads, 2, {2: 1.0, 1: 1.9}.__getitem__)
    assert work(threads, 60, QUIET)[1] == 0


def test_all_threads_are_used_again_within_seconds_of_its_end():
    threads = AdaptiveThreads(2, 1)
    work(threads, 60, CROWDED)
    work(threads, 60.5, QUIET)
    assert work(threads, 30, QUIET)[1] == 0


def test_trying_fewer_in_vain_costs_next_to_nothing():
    assert work(AdaptiveThreads(2, 1), 600, lambda count: 3.0)[1] < 600 * 0.02


def test_a_crowd_that_stays_is_left_to_the_fewer():
    assert work(AdaptiveThreads(2, 1), 600, CROWDED)[2] < 600 * 0.02


def test_nothing_is_tried_if_there_is_no_other_number():
    threads = AdaptiveThreads(1, 1)
    for _ in range(1000):
        threads.note(1.0, 0.1)
    assert threads.count == 1
