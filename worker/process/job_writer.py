"""A job's changes of state in Redis, as a worker makes them; and images as PNGs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.client import Pipeline
from torch import Tensor

from models.checkpoints.images import to_image
from worker.jobs import transitions
from worker.jobs.domain import Precision, Recipe, Shard, State
from worker.jobs.keys import chains_key, job_key, progress_field, sha256_key
from worker.results.png import png_with_recipe
from worker.results.store import ResultsStore, StoreFault

# Saved chains of this size go to the results store, if there is one. 64 of 32x32 RGB are smaller.
LARGE_BYTES = 1 << 20
# Key of a set of leases, and a lease; or nothing.
Fence = tuple[str, str] | tuple[()]
# Stands in Redis for chains that lie in the results store.
_IN_STORE = b""


def encode(
    pixels: Tensor, recipe: Recipe, index: int, precision: Precision, step: int | None = None
) -> bytes:
    """Encode an image as a PNG whose metadata holds all that is needed to make it again.

    Args:
        pixels: uint8, shape (C, H, W).
        recipe: what the image was made from.
        index: the image's index in its job.
        precision: precision of the network that made it.
        step: steps that are done, for a preview; None for a finished image.
    """
    made_by = {**recipe.fields, "index": index, "precision": precision}
    if step is not None:
        made_by["step"] = step
    return png_with_recipe(to_image(pixels), made_by)


@dataclass(frozen=True, slots=True)
class Started:
    """A shard whose job runs.

    Attributes:
        finished: indices of its job's images that need not be computed again.
        has_chains: whether chains of the shard are saved.
    """

    finished: frozenset[int]
    has_chains: bool


class JobWriter:
    """Writes what becomes of a job.

    Where a method answers False, the job has ended or is gone: drop its chains. All methods raise
    RedisError if Redis does not answer or refuses.
    """

    def __init__(self, redis: Redis, store: ResultsStore, large_bytes: int = LARGE_BYTES) -> None:
        """Make a writer.

        Args:
            redis: the job store.
            store: where images lie.
            large_bytes: size from which saved chains go to `store` if that is not in Redis.
        """
        self._redis = redis
        self._store = store
        self._large_bytes = large_bytes
        # Ids of the shards whose chains may lie in the results store.
        self._in_store: set[str] = set()

    def start(self, shard: Shard, attempt: int, fence: Fence = ()) -> bool:
        """Start the shard's job, or count another attempt of it.

        Args:
            shard: the shard that was taken.
            attempt: 1 for a shard that no worker has lost yet.
            fence: the key of a set of leases, and the lease without which nothing starts.
        """
        return self.start_all([(shard, attempt, fence)])[0] is not None

    def start_all(self, starts: Sequence[tuple[Shard, int, Fence]]) -> list[Started | None]:
        """Start the jobs of shards that were taken, in one round trip.

        Args:
            starts: what `start` takes, of each shard.

        Returns:
            What is there of each shard; None if its job has ended or is gone.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for shard, attempt, fence in starts:
                leases, lease = fence or (None, None)
                transitions.START.eval(
                    pipe,
                    **_keys(shard),
                    leases=leases,
                    attempt=attempt,
                    external=int(self._store.external),
                    lease=lease,
                )
                pipe.hkeys(sha256_key(shard.job))
                pipe.hexists(chains_key(shard.job), str(shard.number))
            answers = pipe.execute()
        return [
            Started(frozenset(map(int, indices)), bool(has_chains))
            if state is not None and State(state.decode()) is State.RUNNING
            else None
            for state, indices, has_chains in zip(
                answers[::3], answers[1::3], answers[2::3], strict=True
            )
        ]

    def settled(self, shard: Shard) -> bool:
        """Tell whether nothing of the shard is left to do.

        That is so if all its images have their hashes, or if its job has ended or is gone. After
        the last image was published it may still be False, because the server may have been
        restored to an earlier moment.
        """
        with self._redis.pipeline() as pipe:
            pipe.hget(job_key(shard.job), "state")
            pipe.hkeys(sha256_key(shard.job))
            state, indices = pipe.execute()
        return (
            state is None
            or State(state.decode()).final
            or set(shard.indices) <= {int(index) for index in indices}
        )

    def progress(self, reports: Sequence[tuple[Shard, int, int]]) -> list[bool]:
        """Write the progress of shards, in one write for all.

        Args:
            reports: of each shard the step of its least advanced image, and its image-steps done.

        Returns:
            Whether each shard is still wanted.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for report in reports:
                self._write_progress(pipe, *report)
            return [bool(answer) for answer in pipe.execute()]

    def goes_to_store(self, chains: bytes) -> bool:
        """Tell whether these packed chains are saved in the results store, and not in Redis."""
        return self._store.external and len(chains) >= self._large_bytes

    def save(self, saves: Sequence[tuple[Shard, bytes, int]]) -> list[bool]:
        """Save the chains of shards for the workers that may take them up.

        Args:
            saves: of each shard its packed chains, and the image-steps that are done in them.

        Returns:
            Whether each shard is still wanted.

        Raises:
            StoreFault: the results store failed. All chains that go to Redis have been saved.
        """
        large = {shard.id for shard, chains, _ in saves if self.goes_to_store(chains)}
        self._in_store |= large
        sent: list[Shard] = []
        failed: StoreFault | None = None
        with self._redis.pipeline(transaction=False) as pipe:
            for shard, chains, image_steps in saves:
                if shard.id in large:
                    try:
                        self._store.put_blob(shard.job, _chains_name(shard), chains)
                    except StoreFault as fault:
                        failed = fault
                        continue
                    chains = _IN_STORE
                transitions.SAVE.call(
                    pipe,
                    **_keys(shard),
                    shard=shard.number,
                    snapshot=chains,
                    image_steps=image_steps,
                )
                sent.append(shard)
            wanted = [bool(answer) for answer in pipe.execute()]
        for shard, stays in zip(sent, wanted, strict=True):
            if shard.id in large and not stays:
                self._store.remove_blob(shard.job, _chains_name(shard))
        if failed:
            raise failed
        return wanted

    def saved(self, shard: Shard) -> bytes | None:
        """Return the shard's packed chains, or None if none are saved.

        Raises:
            StoreFault: the results store does not give them.
        """
        chains = cast("bytes | None", self._redis.hget(chains_key(shard.job), str(shard.number)))
        if chains != _IN_STORE:
            return chains
        self._in_store.add(shard.id)
        return self._store.get_blob(shard.job, _chains_name(shard))

    def forget(self, shard: Shard) -> None:
        """Remove the shard's saved chains.

        Raises:
            StoreFault: the results store does not remove them.
        """
        self._redis.hdel(chains_key(shard.job), str(shard.number))
        if shard.id in self._in_store:
            self._in_store.discard(shard.id)
            self._store.remove_blob(shard.job, _chains_name(shard))

    def publish(
        self, shard: Shard, images: Sequence[tuple[int, bytes]], last: bool = False
    ) -> bool:
        """Publish images: first their bytes, then their hashes. A job's last image finishes it.

        Args:
            shard: whose images they are.
            images: PNGs with their indices.
            last: whether nothing of the shard is to come. Its progress is then brought to the end,
                in the same write.

        Raises:
            StoreFault: the results store does not take them; nothing was published.
        """
        if self._store.external:
            images = self._without_hash(shard.job, images)
        stored = self._store.put(shard.job, images)
        entries = [
            (index, hashlib.sha256(png).hexdigest(), in_redis)
            for (index, png), in_redis in zip(images, stored, strict=True)
        ]
        with self._redis.pipeline(transaction=False) as pipe:
            if last:
                steps = shard.recipe.steps
                self._write_progress(pipe, shard, steps, steps * shard.count)
            transitions.PUBLISH.call(pipe, **_keys(shard), images=entries)
            wanted = bool(pipe.execute()[-1])
        if not wanted and images and self._store.external:
            self._take_back(shard.job, [index for index, _ in images])
        return wanted

    def fail(self, job: str, code: str, message: str) -> None:
        """End the job as failed, unless it has ended or is gone."""
        transitions.fail_job(self._redis, job, code, message)

    def _without_hash(
        self, job: str, images: Sequence[tuple[int, bytes]]
    ) -> list[tuple[int, bytes]]:
        """Return the images without a hash.

        An object that has one is what was promised, and another machine's bytes may differ. An
        image that gets its hash while the objects are written is replaced all the same. The API
        then refuses it as damaged.
        """
        hashes = self._hashes(job, [index for index, _ in images])
        return [image for image, sha256 in zip(images, hashes, strict=True) if not sha256]

    def _hashes(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        hashes = self._redis.hmget(sha256_key(job), [str(index) for index in indices])
        return cast("list[bytes | None]", hashes)

    def _write_progress(self, pipe: Pipeline, shard: Shard, least: int, image_steps: int) -> None:
        transitions.PROGRESS.call(
            pipe,
            **_keys(shard),
            field=progress_field(shard.number),
            progress=f"{least},{image_steps}",
        )

    def _take_back(self, job: str, indices: Sequence[int]) -> None:
        """Remove the images of a job that has ended, apart from those that have a hash.

        These finished the job, perhaps by the very call whose answer was lost.
        """
        if not self._redis.exists(job_key(job)):
            return self._store.remove_all(job)
        hashes = self._hashes(job, indices)
        without = [index for index, sha256 in zip(indices, hashes, strict=True) if not sha256]
        self._store.remove(job, without)


def _chains_name(shard: Shard) -> str:
    return f"chains-{shard.number}"


def _keys(shard: Shard) -> dict[str, str]:
    return transitions.transition_keys(shard.job, shard.job_priority)
