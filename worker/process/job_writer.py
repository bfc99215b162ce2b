"""Finished images on their way out: bytes to PNG with the recipe inside, and the changes of a job's state in Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

from redis import Redis
from redis.client import Pipeline
from torch import Tensor

from models.checkpoints.png import png_with_recipe
from worker.jobs import reaper, transitions
from worker.jobs.domain import Precision, Recipe, Shard, State
from worker.jobs.keys import chains_key, job_key, progress_field, sha256_key
from worker.results.store import ResultsStore, StoreFault

LARGE_BYTES = (
    1 << 20
)  # chains of this size go to the results store, where there is one; 64 of 32x32 RGB are smaller
_IN_STORE = b""  # stands in Redis for chains that lie in the results store


def encode(
    pixels: Tensor, recipe: Recipe, index: int, precision: Precision, step: int | None = None
) -> bytes:
    """uint8 (C, H, W) to a PNG from whose metadata the picture can be made again. `step`: of a preview, how many are done."""
    made_by = {**recipe.fields, "index": index, "precision": precision} | (
        {} if step is None else {"step": step}
    )
    return png_with_recipe(pixels, made_by)


class JobWriter:
    """The contract's changes of state, from the worker's side. False means: the job has ended or is gone, drop its chains."""

    def __init__(self, redis: Redis, store: ResultsStore) -> None:
        self._redis, self._store = redis, store
        self._in_store: set[str] = set()  # shards whose chains may lie there
        scripts = (transitions.START, transitions.PROGRESS, transitions.SAVE, transitions.PUBLISH)
        self._start, self._progress, self._save, self._publish = (
            cast("Any", redis.register_script(s)) for s in scripts
        )

    def start(self, shard: Shard, attempt: int, fence: tuple[str, str] | tuple[()] = ()) -> bool:
        """`fence`: the set of leases, and the one in it without which nothing starts."""
        leases, lease = fence[:1], fence[1:]
        state = self._start(
            keys=[*_keys(shard), *leases], args=[attempt, int(self._store.external), *lease]
        )
        return state is not None and State(state.decode()) is State.RUNNING

    def settled(self, shard: Shard) -> bool:
        """Whether nothing of the shard is left to do: its images have their hashes, or its job has ended or is gone.

        Not to be taken for granted when the last image was published: the server may have been restored to an earlier moment.
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

    def finished_indices(self, shard: Shard) -> set[int]:
        """Images of the shard's job that need no computing again."""
        return {
            int(index) for index in cast("list[bytes]", self._redis.hkeys(sha256_key(shard.job)))
        }

    def progress(self, reports: Sequence[tuple[Shard, int, int]]) -> list[bool]:
        """Of each shard the step of its least advanced image, and the image-steps that are done: one write for all."""
        with self._redis.pipeline(transaction=False) as pipe:
            for report in reports:
                self._note(pipe, *report)
            return [bool(answer) for answer in pipe.execute()]

    def goes_to_store(self, chains: bytes) -> bool:
        return self._store.external and len(chains) >= LARGE_BYTES

    def save(self, saves: Sequence[tuple[Shard, bytes, int]]) -> list[bool]:
        """Keep the chains of shards, in which so many image-steps are done, for whoever takes them up.

        Raises StoreFault, after all has been kept that the store is not needed for.
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
                self._save(keys=_keys(shard), args=[shard.number, chains, image_steps], client=pipe)
                sent.append(shard)
            wanted = [bool(answer) for answer in pipe.execute()]
        for shard, stays in zip(sent, wanted, strict=True):
            if shard.id in large and not stays:
                self._store.remove_blob(shard.job, _chains_name(shard))
        if failed:
            raise failed
        return wanted

    def saved(self, shard: Shard) -> bytes | None:
        """Raises StoreFault."""
        chains = cast("bytes | None", self._redis.hget(chains_key(shard.job), str(shard.number)))
        if chains != _IN_STORE:
            return chains
        self._in_store.add(shard.id)
        return self._store.get_blob(shard.job, _chains_name(shard))

    def forget(self, shard: Shard) -> None:
        """Raises StoreFault."""
        self._redis.hdel(chains_key(shard.job), str(shard.number))
        if shard.id in self._in_store:
            self._in_store.discard(shard.id)
            self._store.remove_blob(shard.job, _chains_name(shard))

    def publish(
        self, shard: Shard, images: Sequence[tuple[int, bytes]], last: bool = False
    ) -> bool:
        """Store PNGs by index, the bytes before the hashes. The one that completes the job closes it. Raises StoreFault.

        `last` images of a shard bring its progress to the end, in the same write.
        """
        images = self._unknown(shard.job, images) if self._store.external else images
        kept = self._store.put(shard.job, images)
        entries = [
            part
            for (index, png), in_redis in zip(images, kept, strict=True)
            for part in (index, hashlib.sha256(png).hexdigest(), in_redis)
        ]
        with self._redis.pipeline(transaction=False) as pipe:
            if last:
                self._note(pipe, shard, shard.recipe.steps, shard.recipe.steps * shard.count)
            self._publish(keys=_keys(shard), args=entries, client=pipe)
            wanted = bool(pipe.execute()[-1])
        if not wanted and images and self._store.external:
            self._take_back(shard.job, [index for index, _ in images])
        return wanted

    def _unknown(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Those without a hash yet: an object that has one is what was promised, and another machine's bytes may differ.

        What gets its hash while the objects are written is replaced all the same, and then refused by the API as harmed.
        """
        hashes = cast(
            "list[bytes | None]",
            self._redis.hmget(sha256_key(job), [str(index) for index, _ in images]),
        )
        return [image for image, sha256 in zip(images, hashes, strict=True) if not sha256]

    def _note(self, pipe: Pipeline, shard: Shard, least: int, image_steps: int) -> None:
        self._progress(
            keys=_keys(shard),
            args=[progress_field(shard.number), f"{least},{image_steps}"],
            client=pipe,
        )

    def _take_back(self, job: str, indices: Sequence[int]) -> None:
        """Images that have a hash stay: the job has ended with them, perhaps by this very call, whose answer was lost."""
        if not self._redis.exists(job_key(job)):
            return self._store.remove_all(job)
        hashes = cast(
            "list[bytes | None]",
            self._redis.hmget(sha256_key(job), [str(index) for index in indices]),
        )
        self._store.remove(
            job, [index for index, sha256 in zip(indices, hashes, strict=True) if not sha256]
        )

    def fail(self, job: str, code: str, message: str) -> None:
        """End the job as failed, unless it has ended or is gone."""
        reaper.fail(self._redis, job, code, message)


def _chains_name(shard: Shard) -> str:
    return f"chains-{shard.number}"


def _keys(shard: Shard) -> list[str]:
    return transitions.transition_keys(shard.job, shard.job_priority)
