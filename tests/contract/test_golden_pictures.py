"""What the shipped model draws: a seed's pictures are promised to stay the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import SHIPPED, Catalog
from models.checkpoints.residual_variance import ResidualVariance
from models.diffusion.noise import normal
from models.diffusion.plans import Plan, compile_plan
from models.diffusion.sampling import sample, to_bytes
from tests.support.golden import assert_golden, assert_golden_pictures
from worker.backends.served_network import ServedNetwork
from worker.engine.chain import ChainRequest
from worker.engine.engine import Engine
from worker.engine.pool import Pool
from worker.jobs.domain import Recipe
from worker.process.job_writer import encode

SEED, IMAGES, CPU = 7, range(4), torch.device("cpu")
CATALOG = Catalog.read(SHIPPED)
CARD = CATALOG["fashion-mnist-28"]
SHAPE = (CARD.shape.channels, CARD.shape.height, CARD.shape.width)
MADE_BY = {  # sampler, steps, variance, eta
    "ddpm-fixed-small": ("ddpm", 20, "fixed_small", 0.0),
    "ddpm-analytic": ("ddpm", 20, "analytic", 0.0),
    "ddim-eta-0": ("ddim", 10, "fixed_small", 0.0),
    "ddim-eta-0.5": ("ddim", 10, "fixed_small", 0.5),
    "dpmpp-2m": ("dpmpp_2m", 10, "fixed_small", 0.0),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread. On a busy machine two would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded() -> diffusers_format.Checkpoint:
    return diffusers_format.load(CATALOG.folder(CARD.name), CARD.sha256)


@pytest.fixture(scope="module")
def plans(loaded: diffusers_format.Checkpoint) -> dict[str, Plan]:
    folder = CATALOG.folder(CARD.name)
    estimate = ResidualVariance.read(folder, CARD.sha256, loaded.schedule.T, CARD.residual_variance)
    return {
        name: compile_plan(
            loaded.schedule,
            steps,
            sampler,
            variance=variance,
            eta=eta,
            prediction=loaded.prediction,
            residual_variance=estimate.tensor,
        )
        for name, (sampler, steps, variance, eta) in MADE_BY.items()
    }


def png(pixels: torch.Tensor, name: str, index: int) -> bytes:
    sampler, steps, variance, eta = MADE_BY[name]
    estimate = CARD.residual_variance if variance == "analytic" else ""
    recipe = Recipe(CARD.name, CARD.sha256, sampler, steps, variance, eta, SEED, estimate)
    return encode(pixels, recipe, index, "fp32")


def test_the_engine_draws_the_golden_pictures(loaded, plans):
    """All in one running batch, which pads and shrinks as chains leave it."""
    pool = Pool(ServedNetwork(loaded, CPU), SHAPE, 32, CPU)
    engine = Engine(pool, {4: 1.0, 8: 1.5, 32: 3.0})
    for name, plan in plans.items():
        engine.submit([ChainRequest((name, i), name, plan, SEED, i) for i in IMAGES])
    drawn = {}
    while len(engine):
        for done in engine.step():
            name, index = done.request.chain
            drawn[f"{name}-{index}.png"] = png(done.pixels, name, index)
    assert len(drawn) == len(MADE_BY) * len(IMAGES)
    assert_golden_pictures(drawn)


@pytest.mark.parametrize("name", ["ddpm-fixed-small", "dpmpp-2m"])
def test_the_plain_loop_draws_the_golden_pictures(loaded, plans, name):
    pixels = to_bytes(sample(loaded.net, plans[name], SEED, [0], SHAPE))[0]
    assert_golden_pictures({f"plain-{name}-0.png": png(pixels, name, 0)})


def test_the_noise_of_a_draw_is_the_golden_one():
    seed, index, draw = (torch.tensor([number]) for number in (SEED, 3, 5))
    values = normal(seed, index, draw, SHAPE)[0].flatten()
    assert_golden("noise.json", [float(value) for value in values[:: len(values) // 16]])


def test_the_plans_of_the_samplers_are_the_golden_ones(plans):
    """A line a row: t, and the columns, of float32 and exact.

    The columns of thresholds and learned variances, which no model here has, are 0.
    """
    assert not any(plan.rows[:, 7:].any() for plan in plans.values())
    assert_golden("plans.json", {name: lines(plan) for name, plan in plans.items()})


def lines(plan: Plan) -> list[str]:
    rows = zip(plan.t.tolist(), plan.rows.tolist(), strict=True)
    return [f"{t}: {' '.join(map(repr, row[:7]))}" for t, row in rows]
