"""Where finished PNGs and large snapshots lie: in Redis, or in a results store in the folder `<url>/<job>`. Knows no torch.

The store is any that fsspec opens: a folder, S3, Google Cloud Storage. A PNG is there whole before its hash is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class StoreFault(Exception):
    """The results store does not answer, is full or refuses; time may mend it. The text holds no secret."""


class ResultsStore(Protocol):
    """Its methods block, and raise StoreFault."""

    external: bool  # not in Redis: no key's time to live removes what it holds

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Keep PNGs by index. Returns what is to lie in Redis for each."""
        ...

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]: ...

    def remove(self, job: str, indices: Iterable[int]) -> None: ...

    def remove_all(self, job: str) -> None:
        """Whatever lies there of the job."""
        ...

    def put_blob(self, job: str, name: str, blob: bytes) -> None: ...

    def get_blob(self, job: str, name: str) -> bytes | None: ...

    def remove_blob(self, job: str, name: str) -> None: ...
