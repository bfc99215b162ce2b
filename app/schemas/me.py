"""What a client is told of its own key."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class Limit(BaseModel):
    most: int = Field(description="What the owner may have at a time", examples=[50_000_000])
    used: int = Field(description="What the owner has now", examples=[12_000])
    left: int = Field(description="What is left of it", examples=[49_988_000])

    @classmethod
    def of(cls, used: int, most: int) -> Limit:
        """Return the limit `most`, of which `used` is taken."""
        return cls(most=most, used=used, left=max(0, most - used))


class Me(BaseModel):
    name: str = Field(
        description="Name of the key, which is the owner of its jobs; `local` without keys",
        examples=["ann"],
    )
    scopes: list[str] = Field(
        description="submit: post jobs, cancel and delete the owner's; read: see the owner's jobs; "
        "operate: all of that with everybody's jobs",
        examples=[["read", "submit"]],
    )
    expires_at: datetime | None = Field(
        description="When the key is let in no more, UTC; null for never",
        examples=["2027-02-01T00:00:00Z"],
    )
    requests_per_s: float | None = Field(
        description="Requests a second to one API process; null for no limit", examples=[100]
    )
    requests: Limit | None = Field(
        description="Requests that may be sent at once, where dear ones count as several; they "
        "come back at `requests_per_s`. Null for no limit"
    )
    streams: Limit = Field(
        description="Event streams and waits that may be open in the API process that answers"
    )
    open_image_steps: Limit = Field(description="Image-steps that open jobs have left to run")
    open_jobs: Limit = Field(description="Jobs that wait or run")
    kept_jobs: Limit = Field(description="These, and jobs that have ended and are not forgotten")
    kept_bytes: Limit = Field(
        description="Bytes of images that are kept; those of open jobs count as what they may take"
    )
