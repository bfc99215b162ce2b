"""The PNGs of jobs, from Redis or from the results store.

The event loop never waits for the store, which is read in threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TypeVar, cast

from redis.asyncio import Redis

from app.problems.problems import ResultsUnreachable
from app.records.record import Record
from worker.jobs.keys import png_key
from worker.logs import event
from worker.results.store import ResultsStore, StoreFault

log = logging.getLogger(__name__)
# A store that hangs is a 503 within 5 s.
_TIMEOUT_S = 3.0
# The store has its own threads: if it hangs, contact sheets are still drawn.
_THREADS = 16

T = TypeVar("T")


class ImageReader:
    """Reads PNGs, and removes those of deleted jobs from the results store."""

    def __init__(
        self, redis: Redis, store: ResultsStore, failed: Callable[[], None] = lambda: None
    ) -> None:
        """Take where PNGs lie, and what counts the errors of the results store."""
        self._redis = redis
        self._failed = failed
        self._store = store
        self._threads = ThreadPoolExecutor(_THREADS, "results")

    async def read(self, record: Record, digests: Mapping[int, str | None]) -> list[bytes | None]:
        """Read a PNG for each index.

        Args:
            record: The job.
            digests: The sha256 of each image, by index; None for one that is not finished.

        Returns:
            The PNGs in the order of the indices; None for one that is unfinished or expired.

        Raises:
            ResultsUnreachable: The results store did not answer.
            redis.RedisError: Redis did not answer.
        """
        answer = await self._redis.hmget(png_key(record.id), list(map(str, digests)))
        pngs = dict(zip(digests, cast("list[bytes | None]", answer), strict=True))
        absent = {index: digest for index, digest in digests.items() if digest and not pngs[index]}
        return list((pngs | await self.stored(record, absent)).values())

    async def stored(self, record: Record, digests: Mapping[int, str]) -> dict[int, bytes | None]:
        """Read PNGs from the results store, by index; None for one that is not there.

        Raises:
            ResultsUnreachable: The results store did not answer.
        """
        if not digests or not record.in_store(time.time()):
            return dict.fromkeys(digests)
        try:
            pngs = await self._in_thread(lambda: self._store.get(record.id, list(digests)))
        except (StoreFault, TimeoutError) as error:
            self._failed()
            log.warning(
                "the images of job %s cannot be read: %s",
                record.id,
                str(error) or f"no answer in {_TIMEOUT_S} s",
                extra=event("store.unreadable", job=record.id),
            )
            raise ResultsUnreachable from None
        return dict(zip(digests, _unharmed(record.id, digests.items(), pngs), strict=True))

    async def remove(self, job: str) -> None:
        """Remove all images of a job from the results store.

        If that fails, the workers do it later: the job is in `ddpm:expiring`.
        """
        try:
            await self._in_thread(lambda: self._store.remove_all(job))
        except (StoreFault, TimeoutError) as error:
            self._failed()
            log.warning(
                "the images of deleted job %s are left to the workers: %s",
                job,
                str(error) or f"no answer in {_TIMEOUT_S} s",
                extra=event("store.left_behind", job=job),
            )

    def close(self) -> None:
        """End the threads, without waiting for the store."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        async with asyncio.timeout(_TIMEOUT_S):
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _unharmed(
    job: str, digests: Iterable[tuple[int, str]], pngs: Iterable[bytes | None]
) -> list[bytes | None]:
    """Replace a PNG by None where its sha256 is not the promised one: it counts as lost."""
    checked: list[bytes | None] = []
    for (index, digest), png in zip(digests, pngs, strict=True):
        intact = png is None or sha256(png).hexdigest() == digest
        if not intact:
            log.error(
                "image %d of job %s in the results store is not what was stored; "
                "post the job again",
                index,
                job,
                extra=event("image.damaged", job=job, index=index),
            )
        checked.append(png if intact else None)
    return checked
