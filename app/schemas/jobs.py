"""Schemas of jobs: what a client posts, and what it gets back."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from models.diffusion.options import Sampler, Variance
from worker.jobs.domain import MAX_COUNT, MAX_SEED, MAX_START, MOST_GUIDANCE, Priority, State

JOB_EXAMPLE = "9f1c2b7e4d5a4c0f8b6a3e2d1c0b9a87"
_IDEMPOTENCY_KEY = re.compile("^[!-~]{1,255}$")
SHA256_EXAMPLE = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
# The pattern is for clients only: app/webhooks/check.py refuses the same in better words.
_WEBHOOK = Field(max_length=2000, json_schema_extra={"pattern": "^https?://"})


def _optional(schema: dict[str, Any]) -> None:
    """Say nothing of the default: generators take a field that has one for required."""
    schema.pop("default")


def _label(value: object) -> object:
    """Check a label: what it names, its model's card tells."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(
            f"a label is the name or the number of a class, not {value!r:.40};"
            " see `classes` of `GET /v1/models`"
        )
    return value


Label = Annotated[int | str, BeforeValidator(_label)]

_JOB_REQUEST = (
    "A number of images of one model. Image i depends on model, sampler and its option, steps, "
    "seed, i, its label and the guidance, and on no load.\n\n"
    "Its last bits are those of the worker's arithmetic, which its fingerprint stands for: "
    "`/readyz` names it, and so does each PNG's recipe."
)


class JobRequest(BaseModel):
    """A client's request for a job. The OpenAPI document describes it as `_JOB_REQUEST` does."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"description": _JOB_REQUEST},
    )

    model: str | None = Field(
        default=None,
        description="Name of a model of `GET /v1/models`; null: its default model",
        examples=["fashion-mnist-28"],
    )
    count: int = Field(
        default=1,
        ge=1,
        le=MAX_COUNT,
        description="Number of images; 1 if left out",
        examples=[16],
        json_schema_extra=_optional,
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Seed of the noise; null: drawn and reported",
        examples=[7],
    )
    start: int = Field(
        default=0,
        ge=0,
        le=MAX_START,
        description="Index of the first image; 0 if left out. `start` 5 and `count` 1 give the "
        "sixth image of a larger job of the same seed",
        examples=[0],
        json_schema_extra=_optional,
    )
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Steps from noise to image, at most the T of the model's card; null: the "
        "model's default",
        examples=[100],
    )
    sampler: Sampler | None = Field(
        default=None, description="Null: the model's default", examples=["ddim"]
    )
    eta: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Noise of `sampler` ddim, which has to be named: 0 is deterministic, 1 is "
        "ddpm; null: the model's default",
        examples=[0.0],
    )
    variance: Variance | None = Field(
        default=None,
        description="Reverse variance of `sampler` ddpm, which has to be named; null: the model's "
        "default, but never fixed_large at fewer than 0.4 T steps, which it is not for. analytic "
        "is the best for few steps, and offered by models whose card has a `residual_variance`; "
        "learned is offered by those whose card has a `learned_variance`",
        examples=["fixed_small"],
    )
    label: Label | None = Field(
        default=None,
        description="Class of all images: a name of the model's card, or a number from 0 on. Null, "
        "without `labels`: drawn for each image from its seed and index alone, if the model has "
        "classes. It is the SHA-256 of `label SEED INDEX`: the first 8 bytes as a big-endian "
        "number, modulo the number of classes",
        examples=["cat"],
    )
    labels: Annotated[list[Label], Field(max_length=MAX_COUNT)] | None = Field(
        default=None,
        description="Class of each image, `count` of them, instead of `label`",
        examples=[["cat", 3]],
    )
    guidance: float | None = Field(
        default=None,
        ge=0,
        le=MOST_GUIDANCE,
        allow_inf_nan=False,
        description="Weight w of classifier-free guidance, for models whose card has a null class: "
        "the estimate is null + w (conditional - null). Null or 1: none; any other takes two "
        "passes of the network a step, and counts as twice the image-steps",
        examples=[2.0],
    )
    priority: Annotated[Priority, Field(strict=False)] = Field(
        default=Priority.INTERACTIVE,
        description="interactive jobs come first, as do those that name neither; bulk yields to "
        "them, but keeps at least one place in eight. The images after the first 64 of an "
        "interactive job run as bulk",
        examples=["interactive"],
        json_schema_extra=_optional,
    )
    webhook: Annotated[str, _WEBHOOK] | None = Field(
        default=None,
        description="Where a signed POST says that the job has ended, if the service sends any "
        "(docs/how-to/receive-webhooks.md): http or https, port 80, 443 or 1024 and above, a "
        "public address unless the operator allows others",
        examples=["https://example.com/hooks/ddpm"],
    )

    @field_validator("count", "seed", "start", "steps", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        """Turn 7.0 into 7: to JSON and to JSON Schema they are the same number."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("labels")
    @classmethod
    def _one_each(cls, value: list[int | str] | None, info: ValidationInfo) -> object:
        """Check that there is a label for each image, and not another one for all."""
        if value is None:
            return value
        if info.data.get("label") is not None:
            raise ValueError("label is for all images and labels are for each; send one of the two")
        # `count` is absent where it was refused itself.
        count = info.data.get("count", len(value))
        if len(value) != count:
            raise ValueError(
                f"{len(value)} labels for count={count} images; send one for each, or `label`"
            )
        return value

    @field_validator("eta", "variance")
    @classmethod
    def _belongs_to_its_sampler(cls, value: object, info: ValidationInfo) -> object:
        """Check that an option of one sampler comes with the name of that sampler."""
        needed = {"eta": "ddim", "variance": "ddpm"}[str(info.field_name)]
        # `sampler` is absent where it was refused itself.
        named = info.data.get("sampler", needed)
        if value is not None and named != needed:
            given = f"not of {named}" if named else "and the request names no sampler"
            raise ValueError(
                f"{info.field_name} is an option of sampler {needed}, {given}; "
                f'send "sampler": "{needed}" or leave it out'
            )
        return value


def _idempotency_key(text: str | None) -> str | None:
    if text is not None and not _IDEMPOTENCY_KEY.fullmatch(text):
        raise ValueError(
            f"the Idempotency-Key has {len(text)} characters; send 1 to 255 visible ones of "
            "ASCII, such as a UUID"
        )
    return text


IdempotencyKey = Annotated[
    str | None,
    AfterValidator(_idempotency_key),
    Header(
        description="The same key and body give the same job, however often they are sent; "
        "another body is refused. Kept for as long as the job is",
        examples=["5f0c6a52-6f4e-4b1e-9a53-1d1f2f6f8f57"],
        json_schema_extra={"pattern": _IDEMPOTENCY_KEY.pattern},
    ),
]


class Progress(BaseModel):
    step: int = Field(description="Steps done by the least advanced image", examples=[40])
    steps: int = Field(description="Steps of every image", examples=[100])
    images_done: int = Field(description="Images that can be fetched", examples=[0])
    fraction: float = Field(ge=0, le=1, description="Image-steps done, of all", examples=[0.4])
    images_per_s: float | None = Field(
        description="Mean rate since the start; null before it", examples=[3.1]
    )


class QueuePlace(BaseModel):
    position: int = Field(
        description="Jobs that have not ended and come before this one", examples=[2]
    )
    eta_s: float | None = Field(
        description="Estimate of the seconds from now until this job has finished if nothing else "
        "is posted, at the pace that live workers measure. Interactive images come before bulk "
        "ones, which keep one place in eight; owners share equally; of one owner's jobs the one "
        "with the least left comes first; a bulk job waits for bulk work posted before it only "
        "until workers have room for it. Behind more than 256 jobs it is guessed from how much "
        "each owner has open. Null without a worker that has the model",
        examples=[12.5],
    )


class Image(BaseModel):
    index: int = Field(description="Absolute index, from `start` on", examples=[0])
    state: State | Literal["expired"] = Field(
        description="finished: can be fetched; expired: could be; otherwise how far its job got "
        "with it",
        examples=["finished"],
    )
    url: str = Field(
        description="Where the PNG is or will be", examples=[f"/v1/jobs/{JOB_EXAMPLE}/images/0"]
    )
    sha256: str | None = Field(
        description="Of the PNG; null until it is finished", examples=[SHA256_EXAMPLE]
    )
    label: int | None = Field(
        description="Number of its class, asked for or drawn; null where the model has none",
        examples=[None],
    )


class JobError(BaseModel):
    code: str = Field(description="For programs", examples=["workers_lost"])
    message: str = Field(
        description="For people",
        examples=[
            "three workers were lost while they ran this job; post it again, and if it happens "
            "again ask the operator"
        ],
    )


class WebhookStatus(BaseModel):
    state: Literal["waiting", "pending", "delivered", "given_up"] = Field(
        description="waiting: the job has not ended; pending: to be sent, or sent again; "
        "delivered: answered with 2xx; given_up: answered with 410, or not delivered by the last "
        "attempt",
        examples=["delivered"],
    )
    attempts: int = Field(description="Times that it was sent, or tried to be", examples=[1])
    said: str | None = Field(
        description="How the last attempt ended; null before it", examples=["answered 204"]
    )


class JobSummary(BaseModel):
    id: str = Field(examples=[JOB_EXAMPLE], description="Identifier, 32 hexadecimal digits")
    owner: str = Field(
        description="Name of the key that posted it; `local` where there are no keys",
        examples=["ann"],
    )
    state: State = Field(
        description="running: a worker holds a part of it; when the last one is lost or stops, it "
        "is queued again. finished, failed and cancelled are final",
        examples=["running"],
    )
    model: str = Field(description="Name of the model", examples=["fashion-mnist-28"])
    sampler: Sampler = Field(description="Sampler", examples=["ddpm"])
    steps: int = Field(description="Steps from noise to image", examples=[100])
    count: int = Field(description="Number of images", examples=[16])
    start: int = Field(description="Index of the first image", examples=[0])
    seed: int = Field(description="Seed, asked for or drawn", examples=[7])
    priority: Priority = Field(description="Class of the queue", examples=["interactive"])
    eta: float | None = Field(
        description="Noise of the ddim sampler; null for others", examples=[None]
    )
    variance: Variance | None = Field(
        description="Reverse variance of the ddpm sampler; null for others",
        examples=["fixed_small"],
    )
    label: int | None = Field(
        description="Number of the class of all its images; null where they differ (`images` has "
        "each one's), and where the model has none",
        examples=[None],
    )
    guidance: float | None = Field(
        description="Weight of classifier-free guidance; null where the model has no classes",
        examples=[None],
    )
    created_at: datetime = Field(
        description="When it was accepted, UTC", examples=["2026-11-22T12:00:00.000000Z"]
    )
    started_at: datetime | None = Field(
        description="When a worker first took it, UTC", examples=["2026-11-22T12:00:00.100000Z"]
    )
    finished_at: datetime | None = Field(
        description="When it reached a final state, UTC", examples=["2026-11-22T12:00:05.200000Z"]
    )
    progress: Progress = Field(description="How far it is")
    error: JobError | None = Field(description="Why it failed; null otherwise")
    attempts: int = Field(
        description="Workers that took up the same part of it, at most: all but the last were "
        "lost. When three in a row get no further than those before them the job fails. A worker "
        "that stops in order and gives its part back is not counted",
        examples=[1],
    )
    uniform: bool = Field(
        description="Whether workers that draw the same bytes drew all of it so far. A job stays "
        "with such workers while one of them lives. false: none did any more, so others went on, "
        "and images may differ in their last bits from those that the same request gives again. "
        "Each PNG's recipe has the `fingerprint` of its worker",
        examples=[True],
    )
    links: dict[str, str] = Field(
        description="Paths: self, events, grid, archive, cancel",
        examples=[{"self": f"/v1/jobs/{JOB_EXAMPLE}", "grid": f"/v1/jobs/{JOB_EXAMPLE}/grid"}],
    )


class Job(JobSummary):
    queue: QueuePlace | None = Field(description="Place in the queue; null unless queued")
    webhook: WebhookStatus | None = Field(
        description="What became of the webhook; null where none was asked for"
    )
    images: list[Image] = Field(description="All images, in order of index")


class JobPage(BaseModel):
    jobs: list[JobSummary] = Field(
        description="Newest first; may be fewer than `limit` before the end"
    )
    next_cursor: str | None = Field(
        description="`cursor` of the next page; null at the end",
        examples=["1795348800000000-9f1c2b7e4d5a4c0f8b6a3e2d1c0b9a87"],
    )
