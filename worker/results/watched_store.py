"""A results store that knows since when it has taken no PNG."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from worker.results.store import ResultsStore, StoreFault

# A store that refuses for so long is out of order for this worker.
REFUSES_S = 30.0
# So is one that does not answer: a large batch takes its time.
HANGS_S = 120.0


class WatchedStore:
    """Passes all to a store, and notes which of the PNGs it takes.

    Attributes:
        external: as of the store.
    """

    def __init__(self, store: ResultsStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self.external = store.external
        self._refused_since: float | None = None
        # When the puts began that have not ended, by thread.
        self._began: dict[int, float] = {}

    @property
    def fault(self) -> str:
        """What is wrong with the store, as clients of `/readyz` see it; empty if nothing is."""
        now, refused_since = self._clock(), self._refused_since
        if refused_since is not None and now - refused_since >= REFUSES_S:
            return f"the results store has taken no picture for {now - refused_since:.0f} s"
        began = min(list(self._began.values()), default=now)
        if now - began >= HANGS_S:
            return f"the results store has not answered for {now - began:.0f} s"
        return ""

    def try_out(self, name: str) -> None:
        """Write something if the store is out of order, since nobody else may do so.

        Args:
            name: of nobody else's.

        Raises:
            StoreFault: the store does not take it.
        """
        if self.fault:
            self._store.put_blob(f"try-{name}", "try", b"")
            self._store.remove_all(f"try-{name}")
            self._refused_since = None

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Store PNGs by index, and return what is to lie in Redis for each."""
        thread = threading.get_ident()
        self._began[thread] = self._clock()
        try:
            stored = self._store.put(job, images)
        except StoreFault:
            if self._refused_since is None:
                self._refused_since = self._clock()
            raise
        finally:
            del self._began[thread]
        # It says nothing of the store that it takes none.
        if images:
            self._refused_since = None
        return stored

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        """Return the PNGs of a job's images, None for each that is not there."""
        return self._store.get(job, indices)

    def remove(self, job: str, indices: Iterable[int]) -> None:
        """Remove PNGs."""
        self._store.remove(job, indices)

    def remove_all(self, job: str) -> None:
        """Remove whatever lies there of the job."""
        self._store.remove_all(job)

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        """Store a blob, or replace it."""
        self._store.put_blob(job, name, blob)

    def get_blob(self, job: str, name: str) -> bytes | None:
        """Return a blob, or None if it is not there."""
        return self._store.get_blob(job, name)

    def remove_blob(self, job: str, name: str) -> None:
        """Remove a blob."""
        self._store.remove_blob(job, name)
