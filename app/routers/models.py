"""Routes of the models that can be sampled from."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.images.model_sheets import has_sheet, read_sheet
from app.images.responses import PngResponse, png_response
from app.problems.problems import NoSheet, UnknownModel, problems
from app.records.links import model_path
from app.routers.binary import NOT_MODIFIED, PNG
from app.routers.dependencies import ModelCatalog
from app.schemas.models import ModelDetails, ModelPage
from models.checkpoints.catalog import Catalog

router = APIRouter(prefix="/v1/models", tags=["models"])

Name = Annotated[str, Path(description="The model's `name`", examples=["fashion-mnist-28"])]


@router.get("")
async def list_models(catalog: ModelCatalog) -> ModelPage:
    """The cards of all models."""
    models = [_model(catalog, name) for name in sorted(catalog)]
    return ModelPage(models=models, default=catalog.default.name)


@router.get("/{name}", responses=problems(UnknownModel))
async def get_model(name: Name, catalog: ModelCatalog) -> ModelDetails:
    """The card of one model."""
    _check(name, catalog)
    return _model(catalog, name)


@router.get(
    "/{name}/sheet",
    description="The sheet of samples that `ddpm models add` draws of a model, as a PNG. It is "
    "there if the model's `links` have `sheet`.",
    response_class=PngResponse,
    responses=problems(UnknownModel, NoSheet) | NOT_MODIFIED | PNG,
)
async def get_model_sheet(name: Name, catalog: ModelCatalog, request: Request) -> Response:
    """Answer with the sheet of samples in the model's folder."""
    _check(name, catalog)
    png = await read_sheet(catalog, name)
    # another is drawn when the model is replaced
    return png_response(request, png, sha256(png).hexdigest(), final=False)


def _check(name: str, catalog: Catalog) -> None:
    if name not in catalog:
        raise UnknownModel(name, catalog)


def _model(catalog: Catalog, name: str) -> ModelDetails:
    path = model_path(name)
    links = {"self": path} | ({"sheet": f"{path}/sheet"} if has_sheet(catalog, name) else {})
    # the card was checked when it was read
    return ModelDetails.model_construct(**dict(catalog[name]), links=links)
