"""Routes of the models that can be sampled from."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app.problems.problems import UnknownModel, problems
from app.routers.dependencies import ModelCatalog
from app.schemas.models import ModelPage
from models.checkpoints.catalog import Card

router = APIRouter(prefix="/v1/models", tags=["models"])

Name = Annotated[str, Path(description="The model's `name`", examples=["fashion-mnist-28"])]


@router.get("")
async def list_models(catalog: ModelCatalog) -> ModelPage:
    """The cards of all models."""
    cards = [catalog[name] for name in sorted(catalog)]
    return ModelPage(models=cards, default=catalog.default.name)


@router.get("/{name}", responses=problems(UnknownModel))
async def get_model(name: Name, catalog: ModelCatalog) -> Card:
    """The card of one model."""
    if name not in catalog:
        raise UnknownModel(name, catalog)
    return catalog[name]
