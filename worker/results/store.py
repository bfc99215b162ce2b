"""What a results store does, wherever it lies: in Redis, or in the folder `<url>/<job>`.

The store is any that fsspec opens: a folder, S3, Google Cloud Storage. A PNG is there whole before
its hash is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class StoreFault(Exception):
    """The results store does not answer, is full or refuses; time may mend it.

    The text holds no secret.
    """


class ResultsStore(Protocol):
    """A place for PNGs by job and index, and for blobs by job and name.

    The methods block, and each raises StoreFault.
    """

    # Whether it lies outside Redis: no key's time to live removes what it holds.
    external: bool

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Store PNGs by index, and return what is to lie in Redis for each."""
        ...

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        """Return the PNGs of a job's images, None for each that is not there."""
        ...

    def remove(self, job: str, indices: Iterable[int]) -> None:
        """Remove PNGs. One that is not there is no fault."""
        ...

    def remove_all(self, job: str) -> None:
        """Remove whatever lies there of the job."""
        ...

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        """Store a blob, or replace it."""
        ...

    def get_blob(self, job: str, name: str) -> bytes | None:
        """Return a blob, or None if it is not there."""
        ...

    def remove_blob(self, job: str, name: str) -> None:
        """Remove a blob. One that is not there is no fault."""
        ...
