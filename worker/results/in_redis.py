"""The results store of a service that has none: PNGs lie in Redis, where the scripts put them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.results.store import StoreFault


class InRedis:
    """Leaves PNGs to publish_images.lua, which stores them with their hashes.

    An API process with this store may meet a job of a worker that has another one.
    """

    external = False

    def put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Return the PNGs, all of which are to lie in Redis."""
        return [png for _, png in images]

    def get(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        """Raise StoreFault, always: the PNGs that Redis lacks lie in a store not known here."""
        raise StoreFault(
            "the job's images lie in a results store, and this process has none; "
            "set its DDPM_RESULTS_URL"
        )

    def remove(self, job: str, indices: Iterable[int]) -> None:
        """Do nothing."""

    def remove_all(self, job: str) -> None:
        """Do nothing."""

    def put_blob(self, job: str, name: str, blob: bytes) -> None:
        """Raise AssertionError: whoever asks `external` first does not come here."""
        raise AssertionError("blobs go to Redis where there is no results store")

    def get_blob(self, job: str, name: str) -> bytes | None:
        """Return None: another worker has a results store, and this one has none."""
        return None

    def remove_blob(self, job: str, name: str) -> None:
        """Do nothing."""
