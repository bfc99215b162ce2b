"""The threads of a worker that do not step: each repeats one task until the worker stops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)

from worker.jobs.backoff import Backoff
from worker.results.store import StoreFault

log = logging.getLogger(__name__)
_BACKOFF = Backoff(first_s=0.2, longest_s=3.0)


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """Work that one thread does again and again.

    Attributes:
        name: the thread's name, with which its log lines begin.
        run_once: one round. It may wait for work for a moment, but not longer: a stop waits for it.
        every_s: pause between two rounds, in seconds.
    """

    name: str
    run_once: Callable[[], None]
    every_s: float = 0.0


class BackgroundThreads:
    """Runs tasks in threads.

    While Redis or the results store is away, a task waits with backoff. Any other failure stops the
    worker, and `failure` then holds the error.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self._stop_requested = False
        self._threads: list[threading.Thread] = []

    def request_stop(self) -> None:
        """Ask the worker to stop. Signal handlers may call this.

        It takes no lock, because the signal may interrupt the main thread inside `stopping.set()`.
        """
        self._stop_requested = True

    def must_stop(self) -> bool:
        """Tell whether the worker is to stop, and let all threads know if it is."""
        if self._stop_requested:
            self.stopping.set()
        return self.stopping.is_set()

    def start(self, task: BackgroundTask) -> None:
        """Run the task in a thread of its own until the worker stops."""
        thread = threading.Thread(target=self._repeat, args=(task,), name=task.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self, within_s: float) -> None:
        """Stop all threads, and wait for them for `within_s` seconds at most."""
        self.stopping.set()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def with_retry(self, name: str, turn: Callable[[], object]) -> None:
        """Call `turn` until it succeeds, as long as only a store is away and the worker runs on.

        Raises:
            RedisError: an error that waiting does not mend.
        """
        pauses = _BACKOFF.pauses()
        while True:
            try:
                turn()
                return
            except (RedisError, StoreFault) as error:
                if not _is_transient(error):
                    raise
                if self.must_stop():
                    return
                pause_s = pauses.next_s()
                what = "" if isinstance(error, StoreFault) else "Redis does not answer: "
                log.warning("%s: %s%s; again in %.1f s", name, what, error, pause_s)
            self.stopping.wait(pause_s)

    def _repeat(self, task: BackgroundTask) -> None:
        try:
            while not self.stopping.is_set():
                self.with_retry(task.name, task.run_once)
                self.stopping.wait(task.every_s)
        # Whatever the error is, the process must not go on without this thread.
        except Exception as error:
            if not self.stopping.is_set():
                log.exception("%s failed; the worker stops", task.name)
                self.failure = error
                self.stopping.set()


_TRANSIENT = (ConnectionError, TimeoutError, StoreFault, OutOfMemoryError, ReadOnlyError)
# The Redis client has no classes for these.
_TRANSIENT_WORDS = ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ")


def _is_transient(error: RedisError | StoreFault) -> bool:
    """Tell whether time mends the error.

    These are: no connection, no answer, and a server that loads its data, is full, or is a replica.
    """
    if isinstance(error, _TRANSIENT):
        return True
    return any(word in str(error) for word in _TRANSIENT_WORDS)
