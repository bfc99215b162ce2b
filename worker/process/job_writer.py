"""A job's changes of state in Redis, as a worker makes them; and images as PNGs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import cast
from uuid import uuid4

from redis import Redis
from torch import Tensor

from models.checkpoints.images import to_image
from worker.jobs import transitions
from worker.jobs.domain import Precision, Recipe, Shard, State
from worker.jobs.keys import (
    BUNDLE_REFERENCE,
    bundle_key,
    chains_key,
    job_key,
    progress_field,
    sha256_key,
)
from worker.jobs.scripts import Argument
from worker.results.png import png_with_recipe
from worker.results.store import ResultsStore, StoreFault

# Saved chains of this size go to the results store, if there is one. 64 of 32x32 RGB are smaller.
LARGE_BYTES = 1 << 20
# A command to Redis carries at most so many bytes, because Redis serves nobody else meanwhile.
COMMAND_BYTES = 1_000_000
# Bundles whose pieces are being sent are not referred to yet. Those of a lost worker go after this.
_UNFINISHED_BUNDLE_S = 600
# Bundles that were read last are kept, since a worker that takes a lost shard takes others of it.
_KEPT_BUNDLES = 4
# Key of a set of leases, and a lease; or nothing.
Fence = tuple[str, str] | tuple[()]
# Stands in Redis for chains that lie in the results store.
_IN_STORE = b""
_REFERENCE = BUNDLE_REFERENCE.encode()
# An image's index, its sha256, what is to lie in Redis of it, and its bytes wherever they lie.
Entry = tuple[int, str, bytes, int]


def encode(
    pixels: Tensor,
    recipe: Recipe,
    index: int,
    precision: Precision,
    step: int | None = None,
    fingerprint: str = "",
) -> bytes:
    """Encode an image as a PNG whose metadata holds all that is needed to make it again.

    Args:
        pixels: uint8, shape (C, H, W).
        recipe: what the image was made from; of its label alone.
        index: the image's index in its job.
        precision: precision of the network that made it.
        step: steps that are done, for a preview; None for a finished image.
        fingerprint: of the worker that made it, for the model; left out if it is empty.
    """
    made_by: dict[str, object] = {
        **recipe.fields,
        **({"label": int(recipe.labels)} if recipe.labels else {}),
        "index": index,
        "precision": precision,
        "request": recipe.request(index),
    }
    made_by.pop("labels", None)
    if fingerprint:
        made_by["fingerprint"] = fingerprint
    if step is not None:
        made_by["step"] = step
    return png_with_recipe(to_image(pixels), made_by)


@dataclass(frozen=True, slots=True)
class Start:
    """What `JobWriter.start_all` is told of a shard that was taken.

    Attributes:
        shard: the shard.
        attempt: 1 for a shard that no worker has lost yet.
        fence: the key of a set of leases, and the lease without which nothing starts.
        fingerprint: this worker's for the shard's model; empty if it has none.
        others: the fingerprints of the other living workers that have the model.
    """

    shard: Shard
    attempt: int
    fence: Fence = ()
    fingerprint: str = ""
    others: Collection[str] = ()


class Elsewhere:
    """A shard of a job that is drawn by other workers, whose fingerprint is another one."""


@dataclass(frozen=True, slots=True)
class ShardResults:
    """What there is to publish of a shard.

    Attributes:
        shard: whose results they are.
        images: PNGs with their indices.
        failure: code and message with which the job fails; None otherwise.
        last: whether nothing of the shard is to come. Its progress is then brought to the end.
    """

    shard: Shard
    images: Sequence[tuple[int, bytes]] = ()
    failure: tuple[str, str] | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Save:
    """Packed chains of one large shard, or of many small ones.

    Attributes:
        chains: what `snapshot_codec.pack` returned.
        shards: the shards, and the image-steps of each that are done in `chains`.
    """

    chains: bytes
    shards: Sequence[tuple[Shard, int]]


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
        # Bundles that were read last, the oldest first.
        self._bundles: dict[str, bytes] = {}

    @property
    def external(self) -> bool:
        """Tell whether images lie in a results store, and not in Redis."""
        return self._store.external

    def start(self, shard: Shard, attempt: int, fence: Fence = ()) -> bool:
        """Start the shard's job, or count another attempt of it.

        Args:
            shard: the shard that was taken.
            attempt: 1 for a shard that no worker has lost yet.
            fence: the key of a set of leases, and the lease without which nothing starts.
        """
        return isinstance(self.start_all([Start(shard, attempt, fence)])[0], Started)

    def start_all(self, starts: Sequence[Start]) -> list[Started | Elsewhere | None]:
        """Start the jobs of shards that were taken, in one round trip.

        Returns:
            What is there of each shard; Elsewhere if it is for other workers; None if its job has
            ended or is gone.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            transitions.START.call_each(pipe, map(self._start_arguments, starts))
            return [_outcome(*(answer or [None])) for answer in pipe.execute()]

    def progress(self, reports: Sequence[tuple[Shard, int, int]]) -> list[bool]:
        """Write the progress of shards, in one write for all.

        Args:
            reports: of each shard the step of its least advanced image, and its image-steps done.

        Returns:
            Whether each shard is still wanted.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            transitions.PROGRESS.call_each(pipe, (_progress_arguments(*each) for each in reports))
            return [bool(answer) for answer in pipe.execute()]

    def goes_to_store(self, size_bytes: int) -> bool:
        """Tell whether a shard's packed chains of this size go to the results store."""
        return self._store.external and size_bytes >= self._large_bytes

    def save(self, saves: Sequence[Save]) -> set[str]:
        """Save the chains of shards for the workers that may take them up.

        Returns:
            Ids of the shards that are still wanted.

        Raises:
            StoreFault: the results store failed. All chains that go to Redis have been saved.
        """
        wanted: set[str] = set()
        failed: StoreFault | None = None
        for save in saves:
            shards = [shard for shard, _ in save.shards]
            large = shards[0] if len(shards) == 1 and self.goes_to_store(len(save.chains)) else None
            if large:
                self._in_store.add(large.id)
                try:
                    self._store.put_blob(large.job, _chains_name(large), save.chains)
                except StoreFault as fault:
                    failed = fault
                    continue
            answers = self._record_save(save, None if large else uuid4().hex)
            stay = [shard.id for shard, stays in zip(shards, answers, strict=True) if stays]
            wanted.update(stay)
            if large and not stay:
                self._store.remove_blob(large.job, _chains_name(large))
        if failed:
            raise failed
        return wanted

    def saved(self, shard: Shard) -> bytes | None:
        """Return packed chains that hold the shard's, or None if none are saved.

        Raises:
            StoreFault: the results store does not give them.
        """
        found = cast("bytes | None", self._redis.hget(chains_key(shard.job), str(shard.number)))
        if found == _IN_STORE:
            self._in_store.add(shard.id)
            return self._store.get_blob(shard.job, _chains_name(shard))
        if found is None or not found.startswith(_REFERENCE):
            # Versions before bundles wrote the chains themselves.
            return found
        return self._bundle(found.removeprefix(_REFERENCE).decode())

    def forget_stored(self, shard: Shard) -> None:
        """Remove what the results store may hold of the shard's saved chains.

        Raises:
            StoreFault: the results store does not remove them.
        """
        if shard.id in self._in_store:
            self._in_store.discard(shard.id)
            self._store.remove_blob(shard.job, _chains_name(shard))

    def publish(
        self, shard: Shard, images: Sequence[tuple[int, bytes]], last: bool = False
    ) -> bool:
        """Publish images of one shard, as `publish_all` does.

        Raises:
            StoreFault: the results store does not take them; nothing was published.
        """
        return self.publish_all([ShardResults(shard, images, last=last)])[0]

    def publish_all(self, results: Sequence[ShardResults]) -> list[bool]:
        """Publish results: first the bytes of images, then their hashes, in one round trip.

        A job's last image finishes it. Where PNGs lie in a results store, a round trip for each
        shard asks before which of them have no hash.

        Args:
            results: of each shard once.

        Returns:
            Whether each shard is still wanted.

        Raises:
            StoreFault: the results store does not take the images; nothing was published.
        """
        stored = [
            self._put(result.shard.job, images)
            for result, images in zip(results, self._to_put(results), strict=True)
        ]
        publishes = [
            (result, some)
            for result, entries in zip(results, stored, strict=True)
            if result.images
            for some in _commands(entries)
        ]
        with self._redis.pipeline(transaction=False) as pipe:
            transitions.PUBLISH.call_each(
                pipe,
                ({**_end_arguments(result), "images": some} for result, some in publishes),
            )
            for result in results:
                if result.failure:
                    code, message = result.failure
                    transitions.FAIL.eval(pipe, **_keys(result.shard), code=code, message=message)
            answers = pipe.execute()
        refused = {
            result.shard.id
            for (result, _), is_wanted in zip(publishes, answers, strict=False)
            if not is_wanted
        }
        if self._store.external:
            for result, entries in zip(results, stored, strict=True):
                if result.shard.id in refused and entries:
                    self._take_back(result.shard.job, [index for index, *_ in entries])
        return [result.shard.id not in refused for result in results]

    def fail(self, job: str, code: str, message: str) -> None:
        """End the job as failed, unless it has ended or is gone."""
        transitions.fail_job(self._redis, job, code, message)

    def _start_arguments(self, start: Start) -> dict[str, Argument]:
        leases, lease = start.fence or (None, None)
        return {
            **_keys(start.shard),
            "leases": leases,
            "number": start.shard.number,
            "attempt": start.attempt,
            "external": int(self._store.external),
            "fingerprint": start.fingerprint,
            "others": " ".join(start.others),
            "lease": lease,
        }

    def _record_save(self, save: Save, bundle: str | None) -> list[int]:
        """Send chains as a bundle, if they go into one, and then what refers to them."""
        shards = [(shard.job, shard.number, image_steps) for shard, image_steps in save.shards]
        if bundle is None:
            return cast(
                "list[int]", transitions.SAVE.call(self._redis, reference="", shards=shards)
            )
        key = bundle_key(bundle)
        starts = range(0, len(save.chains), COMMAND_BYTES)
        for number, start in enumerate(starts):
            piece = save.chains[start : start + COMMAND_BYTES]
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(key, mapping={"pieces": len(starts), str(number): piece})
                pipe.expire(key, _UNFINISHED_BUNDLE_S)
                # The last piece makes all of them visible.
                if number == len(starts) - 1:
                    transitions.SAVE.eval(
                        pipe, reference=f"{BUNDLE_REFERENCE}{bundle}", shards=shards
                    )
                answers = pipe.execute()
        return cast("list[int]", answers[-1])

    def _bundle(self, bundle: str) -> bytes | None:
        """Read a bundle, a piece at a time; None if a piece is not there."""
        if bundle in self._bundles:
            return self._bundles[bundle]
        key = bundle_key(bundle)
        many, piece = cast("list[bytes | None]", self._redis.hmget(key, "pieces", "0"))
        pieces = [piece]
        for number in range(1, int(many or 0)):
            pieces.append(cast("bytes | None", self._redis.hget(key, str(number))))
        if any(piece is None for piece in pieces):
            return None
        read = b"".join(cast("list[bytes]", pieces))
        if len(read) <= COMMAND_BYTES:
            while len(self._bundles) >= _KEPT_BUNDLES:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[bundle] = read
        return read

    def _put(self, job: str, images: Sequence[tuple[int, bytes]]) -> list[Entry]:
        """Put PNGs into the results store, if there is one; return what is to go to Redis."""
        stored = self._store.put(job, images) if images else []
        return [
            (index, hashlib.sha256(png).hexdigest(), in_redis, len(png))
            for (index, png), in_redis in zip(images, stored, strict=True)
        ]

    def _to_put(self, results: Sequence[ShardResults]) -> list[Sequence[tuple[int, bytes]]]:
        """Return the images of each shard, in a results store only those without a hash.

        An object that has one is what was promised, and another machine's bytes may differ. An
        image that gets its hash while the objects are written is replaced all the same. The API
        then refuses it as damaged.
        """
        if not self._store.external:
            return [result.images for result in results]
        return [
            [
                image
                for image, sha256 in zip(
                    result.images,
                    self._hashes(result.shard.job, [index for index, _ in result.images]),
                    strict=True,
                )
                if not sha256
            ]
            for result in results
        ]

    def _hashes(self, job: str, indices: Sequence[int]) -> list[bytes | None]:
        if not indices:
            return []
        hashes = self._redis.hmget(sha256_key(job), [str(index) for index in indices])
        return cast("list[bytes | None]", hashes)

    def _take_back(self, job: str, indices: Sequence[int]) -> None:
        """Remove the images of a job that has ended, apart from those that have a hash.

        These finished the job, perhaps by the very call whose answer was lost.
        """
        if not self._redis.exists(job_key(job)):
            return self._store.remove_all(job)
        hashes = self._hashes(job, indices)
        without = [index for index, sha256 in zip(indices, hashes, strict=True) if not sha256]
        self._store.remove(job, without)


def _outcome(
    state: bytes | None, has_chains: int = 0, *indices: bytes
) -> Started | Elsewhere | None:
    if state == b"elsewhere":
        return Elsewhere()
    if state is None or State(state.decode()) is not State.RUNNING:
        return None
    return Started(frozenset(map(int, indices)), bool(has_chains))


def _chains_name(shard: Shard) -> str:
    return f"chains-{shard.number}"


def _keys(shard: Shard) -> dict[str, str]:
    return transitions.transition_keys(shard.job, shard.job_priority)


def _progress_arguments(shard: Shard, least: int, image_steps: int) -> dict[str, Argument]:
    return {
        **_keys(shard),
        "field": progress_field(shard.number),
        "progress": f"{least},{image_steps}",
    }


def _end_arguments(result: ShardResults) -> dict[str, Argument]:
    """Return all arguments of PUBLISH but the images: the last ones bring progress to the end."""
    shard, steps = result.shard, result.shard.recipe.steps
    if result.last:
        return _progress_arguments(shard, steps, steps * shard.count)
    return {**_keys(shard), "field": "", "progress": ""}


def _commands(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Cut images into what one command carries: COMMAND_BYTES of PNGs, or one PNG.

    Without images there is one command, whose answer tells whether the job is still wanted.
    """
    some: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if some and size_bytes + len(entry[2]) > COMMAND_BYTES:
            yield some
            some, size_bytes = [], 0
        some.append(entry)
        size_bytes += len(entry[2])
    yield some
