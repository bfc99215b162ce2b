"""The sheet of samples in a model's folder, which `ddpm models add` draws."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.problems.problems import NoSheet
from models.checkpoints.catalog import Catalog
from models.checkpoints.layout import SAMPLES

_PNG = b"\x89PNG\r\n\x1a\n"


def has_sheet(catalog: Catalog, model: str) -> bool:
    """Tell whether a model of the catalog has a sheet."""
    return (catalog.folder(model) / SAMPLES).is_file()


async def read_sheet(catalog: Catalog, model: str) -> bytes:
    """Read the sheet of a model of the catalog.

    Raises:
        NoSheet: The folder has none, or it is no PNG.
    """
    png = await asyncio.to_thread(_content, catalog.folder(model) / SAMPLES)
    if not png.startswith(_PNG):
        raise NoSheet(model)
    return png


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    # there is none, or the model is being removed
    except OSError:
        return b""
