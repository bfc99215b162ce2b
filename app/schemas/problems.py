"""Schema of the body of every error (RFC 9457)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class InvalidField(BaseModel):
    field: str = Field(description="Name of the field, parameter or header", examples=["count"])
    value: str = Field(
        description="What was sent, as JSON, cut to 80 characters; arrays and objects are not "
        "shown",
        examples=["1025"],
    )
    detail: str = Field(
        description="Fact, value, remedy",
        examples=["count=1025 is more than 1024; use 1024 or less."],
    )


class ProblemDetails(BaseModel):
    """RFC 9457: the body of every error."""

    type: str = Field(
        description="Kind of problem, for programs",
        examples=["urn:problem-type:ddpm:invalid-request"],
    )
    title: str = Field(description="Kind of problem, for people", examples=["Invalid request"])
    status: int = Field(description="HTTP status", examples=[422])
    detail: str = Field(
        description="Fact, value, remedy",
        examples=["count=1025 is more than 1024; use 1024 or less."],
    )
    errors: list[InvalidField] | None = Field(
        default=None, description="Each invalid field; only for invalid requests"
    )
