"""Models over HTTP: their links, and the sheet of samples in a model's folder."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from app.settings import ApiSettings
from models.checkpoints.layout import SAMPLES
from tests.support.cards import card_of, write_card_of
from tests.support.problems import problem
from tests.support.server import create_fresh_app, serve


def sheet_of(level: int) -> bytes:
    png = BytesIO()
    Image.new("L", (16, 8), level).save(png, "PNG")
    return png.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model with a sheet, one without, and one whose sheet is no picture."""
    for name in ("drawn", "plain", "damaged"):
        write_card_of(name, tmp_path, default=name == "plain")
    (tmp_path / "drawn" / SAMPLES).write_bytes(sheet_of(100))
    (tmp_path / "damaged" / SAMPLES).write_text("<script>")
    return tmp_path


@pytest.fixture
def api(root: Path, shared_valkey_url: str) -> Iterator[httpx.Client]:
    settings = ApiSettings(redis_url=shared_valkey_url, models_dir=root, root_path="/ddpm")
    with serve(create_fresh_app(settings)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_model_is_its_card_and_links_to_its_sheet_if_it_has_one(api: httpx.Client) -> None:
    drawn, plain = (api.get(f"/v1/models/{name}").json() for name in ("drawn", "plain"))
    assert drawn.pop("links") == {
        "self": "/ddpm/v1/models/drawn",
        "sheet": "/ddpm/v1/models/drawn/sheet",
    }
    assert plain["links"] == {"self": "/ddpm/v1/models/plain"}
    assert drawn == card_of("drawn", default=False).model_dump(mode="json")
    listed = {model["name"]: model for model in api.get("/v1/models").json()["models"]}
    assert listed["plain"] == plain
    assert "sheet" in listed["drawn"]["links"]


def test_a_sheet_is_sent_once_and_again_after_it_was_drawn_anew(
    api: httpx.Client, root: Path
) -> None:
    first = api.get("/v1/models/drawn/sheet")
    assert (first.status_code, first.headers["content-type"]) == (200, "image/png")
    assert first.content == sheet_of(100)
    assert first.headers["etag"] == f'"{sha256(first.content).hexdigest()}"'
    assert first.headers["cache-control"] == "no-cache"
    again = {"If-None-Match": first.headers["etag"]}
    unchanged = api.get("/v1/models/drawn/sheet", headers=again)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    (root / "drawn" / SAMPLES).write_bytes(sheet_of(200))
    assert api.get("/v1/models/drawn/sheet", headers=again).content == sheet_of(200)


@pytest.mark.parametrize("name", ["plain", "damaged"])
def test_a_model_without_a_sheet_says_how_there_would_be_one(api: httpx.Client, name: str) -> None:
    found = problem(api.get(f"/v1/models/{name}/sheet"), 404)
    assert found["type"] == "urn:problem-type:ddpm:no-sheet"
    assert found["detail"].startswith(f"'{name}' has no sheet of samples; draw images of your own")


def test_the_sheet_of_an_unknown_model_is_refused_as_the_model(api: httpx.Client) -> None:
    found = problem(api.get("/v1/models/drown/sheet"), 404)
    assert found["type"] == "urn:problem-type:ddpm:unknown-model"
