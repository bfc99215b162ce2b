"""Schema of the body of a webhook."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, Field

from app.schemas.jobs import JobSummary


class WebhookMessage(BaseModel):
    """The body of a webhook, as https://www.standardwebhooks.com has it."""

    type: Literal["job.finished", "job.failed", "job.cancelled"] = Field(
        description="How the job has ended", examples=["job.finished"]
    )
    timestamp: datetime = Field(
        description="When it did, UTC", examples=["2026-11-22T12:00:05.200000Z"]
    )
    data: JobSummary = Field(description="The job")

    @classmethod
    def for_job(cls, job: JobSummary) -> Self:
        """Return the message that says how `job` has ended."""
        return cls.model_validate(
            {"type": f"job.{job.state}", "timestamp": job.finished_at, "data": job}
        )
