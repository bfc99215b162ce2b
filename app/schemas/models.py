"""Schema of the list of models."""

from __future__ import annotations

from pydantic import BaseModel, Field

from models.checkpoints.catalog import Card


class ModelPage(BaseModel):
    models: list[Card] = Field(description="All models, by name")
    default: str = Field(
        description="Used by jobs that name no model", examples=["fashion-mnist-28"]
    )
