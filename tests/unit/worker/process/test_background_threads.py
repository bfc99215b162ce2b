"""Threads that repeat a task until the worker stops."""

from __future__ import annotations

import signal
import threading

import pytest
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    ResponseError,
)

from worker.process.background_threads import BackgroundTask, BackgroundThreads


def test_a_signal_while_threads_are_being_stopped_does_not_hold_them_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler runs in the main thread, also while that thread has the event's lock."""
    threads = BackgroundThreads()
    before = signal.signal(signal.SIGUSR1, lambda *_: threads.request_stop())
    try:
        with monkeypatch.context() as patch:
            patch.setattr(
                threading.Condition, "notify_all", lambda _: signal.raise_signal(signal.SIGUSR1)
            )
            threads.stop(within_s=1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert threads.must_stop()


def test_waiting_for_redis_ends_when_a_stop_is_requested() -> None:
    threads = BackgroundThreads()

    def away() -> None:
        threads.request_stop()
        raise ConnectionError("gone")

    threads.with_retry("start", away)
    assert threads.must_stop()


@pytest.mark.parametrize(
    "error",
    [
        NoScriptError("No matching script"),
        ClusterDownError("CLUSTERDOWN Hash slot not served"),
        NoPermissionError("this user has no permissions"),
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
)
def test_nothing_that_a_server_answers_ends_a_worker(
    error: ResponseError, caplog: pytest.LogCaptureFixture
) -> None:
    threads, turns = BackgroundThreads(), iter([error, error, None])

    def turn() -> None:
        if refused := next(turns):
            raise refused

    threads.with_retry("intake", turn)
    assert next(turns, "over") == "over"
    assert str(error) in caplog.text


def test_a_task_that_fails_stops_all_threads_and_tells_why() -> None:
    threads = BackgroundThreads()
    error = ValueError("a bug")

    def fail() -> None:
        raise error

    threads.start(BackgroundTask("idle", lambda: None, every_s=600))
    threads.start(BackgroundTask("failing", fail))
    assert threads.stopping.wait(60)
    threads.stop(within_s=60)
    assert threads.failure is error


def test_a_task_that_goes_on_to_the_end_is_not_ended_by_a_stop() -> None:
    """The watchdog: what hangs while the worker closes is to be ended, too."""
    threads, rounds = BackgroundThreads(), threading.Semaphore(0)
    threads.start(BackgroundTask("watchdog", rounds.release, to_the_end=True))
    threads.stop(within_s=60)
    assert all(rounds.acquire(timeout=60) for _ in range(1000))
    threads.close()


def test_a_task_that_hangs_is_left_to_itself_and_one_that_fails_says_so() -> None:
    threads, never = BackgroundThreads(), threading.Event()

    def hang() -> None:
        never.wait()

    assert not threads.run_within(hang, within_s=0.01)
    never.set()
    assert threads.run_within(lambda: None, within_s=60)

    def fail() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        threads.run_within(fail, within_s=60)
