from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app.problems.problems import UnknownModel, problems
from app.routers.dependencies import Catalog
from app.schemas.models import ModelPage
from models.checkpoints.catalog import Card

router = APIRouter(prefix="/v1/models", tags=["models"])

Name = Annotated[str, Path(description="The model's `name`", examples=["fashion-mnist-28"])]


@router.get("")
async def list_models(catalog: Catalog) -> ModelPage:
    """The cards of all models."""
    return ModelPage(
        models=[catalog[name] for name in sorted(catalog)], default=catalog.default.name
    )


@router.get("/{name}", responses=problems(UnknownModel))
async def get_model(name: Name, catalog: Catalog) -> Card:
    """The card of one model."""
    if name not in catalog:
        raise UnknownModel(name, catalog)
    return catalog[name]
