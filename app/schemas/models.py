"""Schemas of models."""

from __future__ import annotations

from pydantic import BaseModel, Field

from models.checkpoints.catalog import Card


class ModelDetails(Card):
    """What is known of one model: its card, and where more of it is."""

    links: dict[str, str] = Field(
        description="`self`, and `sheet` where the model has a sheet of samples",
        examples=[
            {
                "self": "/v1/models/fashion-mnist-28",
                "sheet": "/v1/models/fashion-mnist-28/sheet",
            }
        ],
    )


class ModelPage(BaseModel):
    models: list[ModelDetails] = Field(description="All models, by name")
    default: str = Field(
        description="Used by jobs that name no model", examples=["fashion-mnist-28"]
    )
