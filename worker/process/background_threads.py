"""The threads of a worker that do not step: each repeats one task until the worker stops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import RedisError, ResponseError

from worker.jobs.backoff import Backoff
from worker.jobs.store.errors import is_transient, refusal_of
from worker.jobs.worker_registry import WorkerCounters
from worker.logs import event
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
        to_the_end: whether it goes on while the worker stops, until that has closed.
    """

    name: str
    run_once: Callable[[], None]
    every_s: float = 0.0
    to_the_end: bool = False


class BackgroundThreads:
    """Runs tasks in threads.

    While Redis or the results store is away, a task waits with backoff. Any other failure stops the
    worker, and `failure` then holds the error.
    """

    def __init__(self, counters: WorkerCounters | None = None) -> None:
        """Take where errors of the stores are counted."""
        self._counters = counters or WorkerCounters()
        self.stopping = threading.Event()
        self._closed = threading.Event()
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
        if not task.to_the_end:
            self._threads.append(thread)
        thread.start()

    def run_within(self, task: Callable[[], None], within_s: float) -> bool:
        """Run the task in a thread of its own; False if it takes longer, and is left to itself.

        Raises:
            Exception: what the task raises in time.
        """
        errors: list[Exception] = []

        def run() -> None:
            try:
                task()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(within_s)
        if errors:
            raise errors[0]
        return not thread.is_alive()

    def close(self) -> None:
        """End the tasks that go on to the end."""
        self._closed.set()

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
                if isinstance(error, RedisError) and not _is_worth_waiting(error):
                    raise
                if self.must_stop():
                    return
                is_store = isinstance(error, StoreFault)
                self._counters.store_errors += is_store
                self._counters.redis_errors += not is_store
                pause_s = pauses.next_s()
                log.warning(
                    "%s: %s%s; again in %.1f s",
                    name,
                    _subject(error),
                    error,
                    pause_s,
                    extra=event("store.retried" if is_store else "redis.retried", task=name),
                )
            self.stopping.wait(pause_s)

    def _repeat(self, task: BackgroundTask) -> None:
        try:
            until = self._closed if task.to_the_end else self.stopping
            while not until.is_set():
                self.with_retry(task.name, task.run_once)
                until.wait(task.every_s)
        # Whatever the error is, the process must not go on without this thread.
        except Exception as error:
            if not self.stopping.is_set():
                log.exception(
                    "%s failed; the worker stops",
                    task.name,
                    extra=event("worker.failed", task=task.name),
                )
                self.failure = error
                self.stopping.set()


def _subject(error: RedisError | StoreFault) -> str:
    """Return the beginning of a line about the error."""
    if isinstance(error, StoreFault):
        return ""
    refusal = refusal_of(error)
    return f"Redis {refusal.fact}: " if refusal else "Redis does not answer: "


def _is_worth_waiting(error: RedisError) -> bool:
    """Tell whether time or the operator may mend the error.

    That holds for whatever the server answers, since leases are at stake. What the client itself
    raises is a bug.
    """
    return is_transient(error) or isinstance(error, ResponseError)
