from __future__ import annotations

from collections.abc import Callable

from worker.calibration.adaptive_threads import AdaptiveThreads

QUIET: Callable[[int], float] = {
    2: 1.0,
    1: 1.2,
}.__getitem__  # what a promised second takes, by number of threads
CROWDED: Callable[[int], float] = {2: 4.0, 1: 2.0}.__getitem__


def work(
    threads: AdaptiveThreads, seconds: float, slowed: Callable[[int], float]
) -> dict[int, float]:
    """Seconds spent by each number of threads, in steps of ten promised milliseconds."""
    spent = {1: 0.0, 2: 0.0}
    while sum(spent.values()) < seconds:
        count, took = threads.count, 0.01 * slowed(threads.count)
        spent[count] += took
        threads.note(took, 0.01)
    return spent


def test_what_calibration_chose_is_used_while_it_keeps_its_promise():
    assert work(AdaptiveThreads(2, 1), 60, QUIET)[1] == 0


def test_beside_another_process_fewer_are_used_within_a_second():
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


def test_when_it_is_gone_all_are_used_again_within_seconds():
    threads = AdaptiveThreads(2, 1)
    work(threads, 60, CROWDED)
    work(threads, 60.5, QUIET)
    assert work(threads, 30, QUIET)[1] == 0


def test_where_fewer_are_no_better_trying_them_costs_next_to_nothing():
    assert work(AdaptiveThreads(2, 1), 600, lambda count: 3.0)[1] < 600 * 0.02


def test_a_crowd_that_stays_is_left_to_the_fewer():
    assert work(AdaptiveThreads(2, 1), 600, CROWDED)[2] < 600 * 0.02


def test_with_no_other_number_there_is_nothing_to_try():
    threads = AdaptiveThreads(1, 1)
    for _ in range(1000):
        threads.note(1.0, 0.1)
    assert threads.count == 1
