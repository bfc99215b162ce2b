from __future__ import annotations

import signal
import threading

import pytest
from redis.exceptions import ConnectionError

from worker.process.background_threads import BackgroundThreads


def test_signals_that_come_while_the_crew_is_being_stopped_do_not_hold_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler runs in the main thread, between any two of its instructions: also while that thread has the event's lock."""
    crew = BackgroundThreads()
    before = signal.signal(signal.SIGUSR1, lambda *_: crew.ask_to_stop())
    try:
        with monkeypatch.context() as patch:
            patch.setattr(
                threading.Condition, "notify_all", lambda _: signal.raise_signal(signal.SIGUSR1)
            )
            crew.stop(within_s=1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert crew.must_stop()


def test_who_waits_for_redis_may_stop_instead() -> None:
    crew = BackgroundThreads()

    def away() -> None:
        crew.ask_to_stop()
        raise ConnectionError("gone")

    crew.with_retry("start", away)
    assert crew.must_stop()
