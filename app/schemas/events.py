"""Schemas of the events of a job's stream."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.schemas.jobs import JOB_EXAMPLE, SHA256_EXAMPLE, JobError, Progress
from worker.jobs.domain import State


class StateEvent(BaseModel):
    """The job reached a state."""

    type: Literal["state"] = Field(
        default="state", description="Which event it is", examples=["state"]
    )
    state: State = Field(
        description="finished, failed and cancelled are final: the stream ends. A job whose last "
        "worker is lost is queued again",
        examples=["running"],
    )
    at: datetime = Field(
        description="When it did so for the first time, UTC",
        examples=["2026-11-22T12:00:00.100000Z"],
    )
    error: JobError | None = Field(description="Why it failed; null otherwise")


class ImageEvent(BaseModel):
    """An image is finished and can be fetched."""

    type: Literal["image"] = Field(
        default="image", description="Which event it is", examples=["image"]
    )
    index: int = Field(description="Absolute index, from `start` on", examples=[0])
    url: str = Field(description="Where the PNG is", examples=[f"/v1/jobs/{JOB_EXAMPLE}/images/0"])
    sha256: str = Field(description="Of the PNG", examples=[SHA256_EXAMPLE])
    label: int | None = Field(
        description="Number of its class; null where the model has none", examples=[None]
    )


class ProgressEvent(Progress):
    """The job has got further."""

    type: Literal["progress"] = Field(
        default="progress", description="Which event it is", examples=["progress"]
    )


class PreviewEvent(BaseModel):
    """A running image as it stands."""

    type: Literal["preview"] = Field(
        default="preview", description="Which event it is", examples=["preview"]
    )
    index: int = Field(description="Absolute index, from `start` on", examples=[0])
    png: str = Field(
        description="What the network takes the image for, after one of its latest steps",
        examples=["iVBORw0KGgo="],
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/png"},
    )
