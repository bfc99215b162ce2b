"""A model is served as its folder and its card say: learned variances, thresholds, timesteps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoints import diffusers_format
from models.checkpoints.card import make_card
from models.checkpoints.catalog import (
    Card,
    Catalog,
    DataCard,
    ScheduleCard,
    Timesteps,
    write_card,
)
from models.diffusion.sampling import sample, to_bytes
from tests.support.networks import TINY, random_unet
from worker.calibration.calibrate import Calibration
from worker.jobs.domain import Recipe, shards_of
from worker.process.loaded_model import LoadedModel

LEARNED = replace(
    TINY,
    in_channels=4,
    out_channels=8,
    sample_size=(8, 12),
    resnet_time_scale_shift="scale_shift",
    act_fn="mish",
)
STEPS = 12


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LoadedModel, Card]:
    """A model with an option of every kind, whose calibration takes no time."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(
        "worker.calibration.tune.calibrate",
        lambda pool, T, sizes, clock, cores, between: Calibration(
            {1: 1e-3, 4: 2e-3}, threads=threads, fewer=threads, by_fewer={1: 1e-3, 4: 2e-3}
        ),
    )
    folder = tmp_path / "openai"
    state = random_unet(cfg=LEARNED).state_dict()
    card = ScheduleCard(kind="cosine", T=100)
    diffusers_format.save(folder, LEARNED, state, card, "epsilon")
    process = folder / "scheduler" / "scheduler_config.json"
    changes = {
        "variance_type": "learned_range",
        "thresholding": True,
        "dynamic_thresholding_ratio": 0.9,
        "sample_max_value": 2.0,
        "timestep_spacing": "trailing",
    }
    process.write_text(json.dumps(json.loads(process.read_text()) | changes))
    made = make_card(
        folder,
        "openai",
        data=DataCard(name="none", licence="none"),
        licence="Apache-2.0",
        provenance="made by a test",
        timesteps=Timesteps(spacing="trailing"),
    )
    write_card(folder, made)
    return LoadedModel(Catalog.read(tmp_path), "openai", torch.device("cpu"), 4, "fp32"), made


def test_a_card_says_what_the_network_and_its_process_are(served: tuple[LoadedModel, Card]):
    _, card = served
    assert (card.shape.channels, card.shape.height, card.shape.width) == (4, 8, 12)
    assert (card.learned_variance, card.defaults.variance) == (True, "learned")
    assert card.timesteps == Timesteps(spacing="trailing")


def test_a_job_gets_the_images_of_the_plain_loop(served: tuple[LoadedModel, Card]):
    model, card = served
    recipe = Recipe("openai", card.sha256, "ddpm", STEPS, "learned", 0.0, 7)
    (shard,) = shards_of("a" * 32, recipe, 0, 4, "local", "interactive")
    model.admit(shard, [0, 1, 2, 3], None)
    finished = []
    while len(model.engine):
        finished += model.step()
    plan = model.plan("ddpm", STEPS, "learned", 0.0)
    # of 100 timesteps, one in 100 / 12 back from the last
    assert plan.t.tolist()[:3] == [99, 91, 82]
    net = random_unet(cfg=LEARNED)
    expected = to_bytes(sample(net, plan, 7, range(4), (4, 8, 12)))
    for image in finished:
        assert image.pixels is not None
        apart = (image.pixels.int() - expected[image.request.index].int()).abs()
        assert int(apart.max()) <= 1
    assert len(finished) == 4
