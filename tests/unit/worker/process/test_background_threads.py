"""Threads that repeat a task until the worker stops."""

from __future__ import annotations

import signal
import threading

import pytest
from redis.exceptions import ConnectionError

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
