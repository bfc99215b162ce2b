"""The PNGs of jobs, from Redis or from the results store, without making the event loop wait for it."""

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
from worker.results.store import ResultsStore, StoreFault

log = logging.getLogger(__name__)
_TIMEOUT_S = 3.0  # a store that hangs is a 503 within 5 s
_THREADS = 16  # its own: one that hangs must not keep contact sheets from being drawn

T = TypeVar("T")


class ImageReader:
    def __init__(self, redis: Redis, store: ResultsStore) -> None:
        self._redis, self._store = redis, store
        self._threads = ThreadPoolExecutor(_THREADS, "results")

    async def read(self, record: Record, hashes: Mapping[int, str | None]) -> list[bytes | None]:
        """A PNG for each index; None where it is unfinished, so without a hash, or expired. Raises ResultsUnreachable."""
        pngs = cast(
            "list[bytes | None]",
            await self._redis.hmget(png_key(record.id), list(map(str, hashes))),
        )
        found = dict(zip(hashes, pngs, strict=True))
        absent = {index: digest for index, digest in hashes.items() if digest and not found[index]}
        return list((found | await self.stored(record, absent)).values())

    async def stored(self, record: Record, hashes: Mapping[int, str]) -> dict[int, bytes | None]:
        """PNGs of the results store. Raises ResultsUnreachable."""
        if not hashes or not record.in_store(time.time()):
            return dict.fromkeys(hashes)
        try:
            pngs = await self._in_thread(lambda: self._store.get(record.id, list(hashes)))
        except (StoreFault, TimeoutError) as error:
            log.warning(
                "the images of job %s cannot be read: %s",
                record.id,
                str(error) or f"no answer in {_TIMEOUT_S} s",
            )
            raise ResultsUnreachable from None
        return dict(zip(hashes, _unharmed(record.id, hashes.items(), pngs), strict=True))

    async def remove(self, job: str) -> None:
        """What fails here is done by the workers: the job is in `ddpm:expiring`."""
        try:
            await self._in_thread(lambda: self._store.remove_all(job))
        except (StoreFault, TimeoutError) as error:
            log.warning(
                "the images of deleted job %s are left to the workers: %s",
                job,
                str(error) or f"no answer in {_TIMEOUT_S} s",
            )

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        async with asyncio.timeout(_TIMEOUT_S):
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _unharmed(
    job: str, hashes: Iterable[tuple[int, str]], pngs: Iterable[bytes | None]
) -> list[bytes | None]:
    """Never serve other bytes than were promised: what does not have its hash counts as lost."""
    checked: list[bytes | None] = []
    for (index, digest), png in zip(hashes, pngs, strict=True):
        intact = png is None or sha256(png).hexdigest() == digest
        if not intact:
            log.error(
                "image %d of job %s in the results store is not what was stored; post the job again",
                index,
                job,
            )
        checked.append(png if intact else None)
    return checked
