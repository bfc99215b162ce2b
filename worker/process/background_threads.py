"""The threads of a worker beside the one that steps: each repeats a short turn until the worker stops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
)

from worker.results.store import StoreFault

log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 3.0


class BackgroundThreads:
    """Runs turns in threads. While Redis or the results store is away they wait with backoff; other failures stop the worker."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self._asked = False
        self._threads: list[threading.Thread] = []

    def ask_to_stop(self) -> None:
        """For signal handlers. It takes no lock: the signal may have come while the main thread was in the midst of `set`."""
        self._asked = True

    def must_stop(self) -> bool:
        if self._asked:
            self.stopping.set()
        return self.stopping.is_set()

    def start(self, name: str, turn: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._repeat, args=(name, turn), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self, within_s: float) -> None:
        self.stopping.set()
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def with_retry(self, name: str, turn: Callable[[], object]) -> None:
        """Do the turn, and do it again for as long as a store does not answer and the worker does not stop."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                turn()
                return
            except (RedisError, StoreFault) as error:
                if not _passing(error):
                    raise
                if self.must_stop():
                    return
                what = "" if isinstance(error, StoreFault) else "Redis does not answer: "
                log.warning("%s: %s%s; again in %.1f s", name, what, error, pause_s)
            self.stopping.wait(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _repeat(self, name: str, turn: Callable[[], None]) -> None:
        try:
            while not self.stopping.is_set():
                self.with_retry(name, turn)
        except Exception as error:  # whatever it is: the process must not go on without this thread
            if not self.stopping.is_set():
                log.exception("%s failed; the worker stops", name)
                self.failure = error
                self.stopping.set()


def _passing(error: RedisError | StoreFault) -> bool:
    """Faults that time mends: no connection, no answer, a server that loads its data, is full, or is a replica for now."""
    if isinstance(
        error, ConnectionError | TimeoutError | StoreFault | OutOfMemoryError | ReadOnlyError
    ):
        return True
    # the client has no classes for these
    return any(word in str(error) for word in ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN "))
