"""The shortest ways to a picture: from a model on the Hub, and from a folder of pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import Catalog, ScheduleCard
from models.networks.unet import UNet
from tests.e2e.conftest import Service, serving
from tests.support.hub import serving as serving_hub
from tests.support.networks import TINY
from tests.support.processes import run_ddpm
from tests.support.recipes import make_runs_small

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A running service that commands find by their environment; each test adds its worker."""
    with serving(tmp_path) as service:
        monkeypatch.setenv("DDPM_MODELS_DIR", str(service.models_dir))
        monkeypatch.setenv("DDPM_URL", str(service.http.base_url))
        monkeypatch.chdir(tmp_path)
        yield service


def ddpm(*words: str) -> str:
    """Call the command in this process; return what it prints."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def first_picture(service: Service, name: str) -> Image.Image:
    """Let a worker serve the model, ask for an image by the command, and open it."""
    service.models = name
    service.add_worker(precision="fp32")
    ddpm("sample", "--model", name, "--seed", "7", "--steps", "5")
    with Image.open("samples/7-0.png") as picture:
        picture.load()
    recipe = json.loads(picture.text["ddpm"])
    assert recipe["weights"] == Catalog.read(service.models_dir)[name].sha256
    assert len(picture.getcolors()) > 20, "it is a picture"
    return picture


def test_a_model_on_the_hub_is_a_picture_in_two_commands(running, tmp_path):
    folder = tmp_path / "published"
    card = ScheduleCard(kind="linear", T=20)
    diffusers_format.save(folder, TINY, UNet(TINY).state_dict(), card, "epsilon")
    with serving_hub(folder) as hub:
        # The library of the Hub reads its environment once, when it is imported. Other tests of
        # this process have it ask nobody.
        hub_variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
        }
        added = run_ddpm(["models", "add", hub.name, "--no-draw"], {**os.environ, **hub_variables})
    assert added.returncode == 0, added.stderr
    assert first_picture(running, "name").size == (8, 8)


def test_a_folder_of_pictures_is_a_served_model_in_two_commands(running, monkeypatch):
    make_runs_small(monkeypatch)
    rng = np.random.default_rng(0)
    Path("flowers").mkdir()
    for i in range(60):
        pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(f"flowers/{i}.jpg")
    trained = ddpm("train", "--data", "flowers", "--updates", "2", "--device", "cpu")
    assert "60 pictures" in trained
    said = next(line for line in trained.splitlines() if "ddpm models add " in line)
    ddpm(*said.partition("ddpm ")[2].split(), "--no-draw")
    picture = first_picture(running, "flowers-8")
    assert (picture.size, picture.mode) == ((8, 8), "RGB")
