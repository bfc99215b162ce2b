"""The record of a job: as Redis holds it, and as clients see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from redis.typing import EncodableT, FieldT

from app.records.links import job_path
from app.records.open_work import OpenJob
from app.schemas.jobs import Image, Job, JobError, JobSummary, Progress, QueuePlace, WebhookStatus
from worker.jobs.domain import Origin, Priority, Recipe, Shard, State, shard_count, shards_of
from worker.jobs.keys import progress_field


@dataclass(frozen=True, slots=True)
class Record:
    """A job as it was posted, and how far it is. Times are in seconds since the epoch.

    Attributes:
        start: Index of the first image.
        cost_per_image_step: What the limits on open work count an image-step as, with both passes
            of one that is guided.
        webhook: URL that is called when the job ends.
        uniform: Whether workers of one fingerprint drew all of it so far.
        external: Whether some images may lie in the results store.
        expires_at: When the images in the results store go.
        done: For each shard the step of its least advanced image, and its image-steps;
            None for a shard that no worker has taken yet.
    """

    id: str
    owner: str
    recipe: Recipe
    start: int
    count: int
    priority: Priority
    created_at: float
    cost_per_image_step: int = 1
    state: State = State.QUEUED
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int = 0
    error: JobError | None = None
    # Not in the repr: a URL may hold secrets.
    webhook: str | None = field(default=None, repr=False)
    webhook_status: WebhookStatus | None = None
    uniform: bool = True
    external: bool = False
    expires_at: float | None = None
    done: tuple[tuple[int, int] | None, ...] = ()

    @classmethod
    def from_hash(cls, fields: Mapping[bytes, bytes]) -> Record:
        """Parse the fields of a job's hash, which must not be empty."""
        text = {name.decode(): value.decode() for name, value in fields.items()}
        count = int(text["count"])
        finished_at = _time(text, "finished_at")
        external = "external" in text
        expires = external and finished_at
        return cls(
            id=text["id"],
            owner=text["owner"],
            recipe=Recipe.from_text(text),
            start=int(text["start"]),
            count=count,
            priority=Priority(text["priority"]),
            created_at=float(text["created_at"]),
            cost_per_image_step=int(text.get("cost", 1)),
            state=State(text["state"]),
            started_at=_time(text, "started_at"),
            finished_at=finished_at,
            attempts=int(text["attempts"]),
            error=_error(text),
            webhook=text.get("webhook"),
            webhook_status=_webhook_status(text),
            uniform="uniform" not in text,
            external=external,
            expires_at=expires + int(text["results_ttl_s"]) if expires else None,
            done=tuple(
                _done(text.get(progress_field(shard))) for shard in range(shard_count(count))
            ),
        )

    def to_hash(self, results_ttl_s: int, origin: Origin) -> dict[FieldT, EncodableT]:
        """Give the fields of the hash of a job that nobody has touched yet.

        Args:
            results_ttl_s: Seconds that images are kept after the job has ended.
            origin: The request that posts the job.
        """
        recipe = cast("dict[FieldT, EncodableT]", self.recipe.fields)
        webhook: dict[FieldT, EncodableT] = {"webhook": self.webhook} if self.webhook else {}
        # Most models' is 1, which the scripts take for granted.
        cost: dict[FieldT, EncodableT] = (
            {"cost": self.cost_per_image_step} if self.cost_per_image_step > 1 else {}
        )
        return {
            **recipe,
            **webhook,
            **cast("dict[FieldT, EncodableT]", origin.fields),
            **cost,
            "id": self.id,
            "owner": self.owner,
            "start": self.start,
            "count": self.count,
            "priority": self.priority.value,
            "state": self.state.value,
            "created_at": self.created_at,
            "attempts": self.attempts,
            "results_ttl_s": results_ttl_s,
        }

    @property
    def shards(self) -> Iterator[Shard]:
        """The parts that workers take, in order."""
        return shards_of(self.id, self.recipe, self.start, self.count, self.owner, self.priority)

    @property
    def image_steps(self) -> int:
        """The work of the whole job: images times steps."""
        return self.count * self.recipe.steps

    @property
    def cost(self) -> int:
        """The work of the whole job, in image-steps of the reference cost."""
        return self.image_steps * self.cost_per_image_step

    def as_posted(self) -> OpenJob:
        """Return the job's work, all of which is left.

        Two passes of the network count as two steps, since they follow each other.
        """
        passes = self.recipe.passes
        return OpenJob(
            id=self.id,
            owner=self.owner,
            model=self.recipe.model,
            is_interactive=self.priority is Priority.INTERACTIVE,
            count=self.count,
            steps=passes,
            posted_at=self.created_at,
            left=self.count * passes,
            cost=self.cost_per_image_step * self.recipe.steps // passes,
        )

    @property
    def indices(self) -> range:
        """Indices of the job's images."""
        return range(self.start, self.start + self.count)

    @property
    def running(self) -> Iterator[int]:
        """Indices of the images in shards that a worker has taken."""
        return (
            index for indices, state in self._parts() if state is State.RUNNING for index in indices
        )

    def image_url(self, index: int | str) -> str:
        """Give the path of an image's PNG."""
        return f"{job_path(self.id)}/images/{index}"

    def in_store(self, now: float) -> bool:
        """Say whether to ask the results store for images that Redis does not have."""
        return self.external and (self.expires_at is None or now < self.expires_at)

    def summary(self, images_done: int, now: float) -> JobSummary:
        """Give the job as listings have it, without its images."""
        return JobSummary(**self._summary(images_done, now))

    def job(
        self, digests: Mapping[bytes, bytes], stored: bool, queue: QueuePlace | None, now: float
    ) -> Job:
        """Give the job as its status has it.

        Args:
            digests: The sha256 of each finished image, by index.
            stored: Whether the job's PNGs are still in Redis.
            queue: The job's place where it is queued.
            now: Seconds since the epoch.
        """
        finished = self._finished(stored, now)
        labels = self.labels
        images = [
            Image(
                index=index,
                state=finished if (sha256 := digests.get(b"%d" % index)) else unfinished,
                url=self.image_url(index),
                sha256=sha256.decode() if sha256 else None,
                label=labels[index - self.start],
            )
            for indices, unfinished in self._parts()
            for index in indices
        ]
        return Job(
            **self._summary(len(digests), now),
            queue=queue,
            webhook=self.webhook_status,
            images=images,
        )

    def json(
        self, digests: Mapping[bytes, bytes], stored: bool, queue: QueuePlace | None, now: float
    ) -> bytes:
        """Give `job` as JSON, without a pydantic model for each image.

        The models take nearly all the time of a job of 1024 images.
        """
        summary = self._summary(len(digests), now)
        job = Job(**summary, queue=queue, webhook=self.webhook_status, images=[])
        without_images = job.model_dump_json().removesuffix("]}")
        path = self.image_url("")
        finished = self._finished(stored, now)
        labels = ["null" if label is None else str(label) for label in self.labels]
        images = [
            f'{{"index":{index},"state":"{finished}","url":"{path}{index}",'
            f'"sha256":"{sha256.decode()}","label":{labels[index - self.start]}}}'
            if (sha256 := digests.get(b"%d" % index))
            else f'{{"index":{index},"state":"{unfinished}","url":"{path}{index}","sha256":null,'
            f'"label":{labels[index - self.start]}}}'
            for indices, unfinished in self._parts()
            for index in indices
        ]
        return f"{without_images}{','.join(images)}]}}".encode()

    @property
    def labels(self) -> list[int] | list[None]:
        """The label of each image; None where the model has no classes."""
        return self.recipe.labels_of(self.count)

    def _summary(self, images_done: int, now: float) -> dict[str, Any]:
        recipe, path = self.recipe, job_path(self.id)
        return {
            "id": self.id,
            "owner": self.owner,
            "state": self.state,
            "model": recipe.model,
            "sampler": recipe.sampler,
            "steps": recipe.steps,
            "count": self.count,
            "start": self.start,
            "seed": recipe.seed,
            "priority": self.priority,
            "eta": recipe.eta if recipe.sampler == "ddim" else None,
            "variance": recipe.variance if recipe.sampler == "ddpm" else None,
            "label": int(recipe.labels) if recipe.labels and "," not in recipe.labels else None,
            "guidance": recipe.guidance if recipe.labels else None,
            "created_at": utc(self.created_at),
            "started_at": utc(self.started_at),
            "finished_at": utc(self.finished_at),
            "progress": self.progress(images_done, now),
            "error": self.error,
            "attempts": self.attempts,
            "uniform": self.uniform,
            "links": {"self": path}
            | {name: f"{path}/{name}" for name in ("events", "grid", "archive", "cancel")},
        }

    def progress(self, images_done: int, now: float) -> Progress:
        """Say how far the job is.

        `step` is that of the least advanced image, `fraction` the share of its image-steps.
        """
        steps, finished = self.recipe.steps, self.state is State.FINISHED
        least = min(done[0] if done else 0 for done in self.done)
        image_steps = sum(done[1] for done in self.done if done)
        fraction = 1.0 if finished else min(image_steps / (self.count * steps), 1.0)
        return Progress(
            step=steps if finished else least,
            steps=steps,
            images_done=images_done,
            fraction=fraction,
            images_per_s=self._images_per_s(fraction, now),
        )

    def _images_per_s(self, fraction: float, now: float) -> float | None:
        elapsed_s = (self.finished_at or now) - self.started_at if self.started_at else 0.0
        return round(fraction * self.count / elapsed_s, 3) if elapsed_s > 0 else None

    def _finished(self, stored: bool, now: float) -> Literal["finished", "expired"]:
        """Give the state of an image that has a digest."""
        return "finished" if stored or self.in_store(now) else "expired"

    def _parts(self) -> Iterator[tuple[range, State]]:
        """Give the indices of each shard, and the state of those images that have no digest."""
        for shard, done in zip(self.shards, self.done, strict=True):
            waits = self.state is State.RUNNING and done is None
            yield shard.indices, State.QUEUED if waits else self.state


def _error(text: Mapping[str, str]) -> JobError | None:
    if "error_code" not in text:
        return None
    return JobError(code=text["error_code"], message=text["error_message"])


def _webhook_status(text: Mapping[str, str]) -> WebhookStatus | None:
    if "webhook" not in text:
        return None
    state = text.get("webhook_state", "pending" if State(text["state"]).final else "waiting")
    return WebhookStatus.model_validate(
        {
            "state": state,
            "attempts": text.get("webhook_attempts", 0),
            "said": text.get("webhook_said"),
        }
    )


def _time(text: Mapping[str, str], name: str) -> float | None:
    return float(text[name]) if name in text else None


def _done(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    least, done = value.split(",")
    return int(least), int(done)


def utc(seconds: float | None) -> datetime | None:
    """Turn seconds since the epoch into a time of day in UTC; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
