"""Schemas of signed links."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field

from app.schemas.jobs import JOB_EXAMPLE

_EXAMPLE = "?link=1795348800.0123456789abcdef.c2lnbmF0dXJlIG9mIHRoaXMgcGF0aCBhbmQga2V5IF8"


class ImageLink(BaseModel):
    index: int = Field(description="Index of the image", examples=[0])
    url: str = Field(
        description="Path and query of the PNG, which is there once the image is finished",
        examples=[f"/v1/jobs/{JOB_EXAMPLE}/images/0{_EXAMPLE}"],
    )


class SignedLinks(BaseModel):
    expires_at: datetime = Field(
        description="When the links end, UTC; earlier, if the key that made them is removed",
        examples=["2026-11-22T12:00:00Z"],
    )
    events: str = Field(
        description="Of the job's events", examples=[f"/v1/jobs/{JOB_EXAMPLE}/events{_EXAMPLE}"]
    )
    grid: str = Field(
        description="Of the contact sheet", examples=[f"/v1/jobs/{JOB_EXAMPLE}/grid{_EXAMPLE}"]
    )
    archive: str = Field(
        description="Of the zip", examples=[f"/v1/jobs/{JOB_EXAMPLE}/archive{_EXAMPLE}"]
    )
    images: list[ImageLink] = Field(description="Of each image, in order of index")
