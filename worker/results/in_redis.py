"""The results store that is none: PNGs lie in Redis, where the scripts put them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.results.store import StoreFault


class InRedis:
    """PNGs that the contract's scripts carry: nothing to do here."""

    external = False

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        return [png for _, png in images]

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        raise StoreFault(
            "the job's images lie in a results store, and this process has none; set its DDPM_RESULTS_URL"
        )

    def remove(self, job: str, indices: Iterable[int]) -> None: ...

    def remove_all(self, job: str) -> None: ...

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        raise AssertionError("blobs go to Redis where there is no results store")

    def get_blob(self, job: str, name: str) -> bytes | None:
        return None  # another worker has a results store and this one has none

    def remove_blob(self, job: str, name: str) -> None: ...
