"""Interpolation of section 4.4 with networks whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.diffusion.interpolation import encode, interpolate
from models.diffusion.noise import normal
from models.diffusion.options import CLIPPED, UNCLIPPED, Clipping
from models.diffusion.plans import Plan, ddpm
from models.diffusion.schedule import Schedule, linspace_grid
from tests.support.networks import gaussian_eps, points_eps

WEIGHTS = (0.0, 0.25, 0.5, 1.0)


def from_t(schedule: Schedule, t: int, steps: int, clip: Clipping = CLIPPED) -> Plan:
    return ddpm(schedule, linspace_grid(steps, t + 1), "fixed_small", clip=clip)


def pair() -> Tensor:
    return torch.randint(0, 256, (2, 3, 4, 4)) / 127.5 - 1


def test_an_image_is_encoded_by_equation_4_with_the_noise_of_its_index(paper: Schedule):
    x_0 = pair()
    seed, draw = torch.tensor([9]), torch.tensor([0])
    eps = torch.cat([normal(seed, torch.tensor([i]), draw, (3, 4, 4)) for i in (0, 1)])
    alpha_bar = paper.alpha_bar[499].float()
    expected = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    torch.testing.assert_close(encode(paper, x_0, 499, 9), expected)


def test_a_linear_reverse_process_interpolates_on_a_straight_line(paper: Schedule):
    """Every step for Gaussian data is affine in x, and all weights share its noise."""
    plan = from_t(paper, 500, 50, clip=UNCLIPPED)
    decoded = interpolate(gaussian_eps, paper, plan, pair(), WEIGHTS, 3)
    first, *between, second = decoded
    for weight, x in zip(WEIGHTS[1:-1], between, strict=True):
        torch.testing.assert_close(x, (1 - weight) * first + weight * second, rtol=0, atol=1e-5)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize(("t", "same"), [(200, True), (999, False)])
def test_a_network_that_knows_both_images_decodes_them_unless_noise_hides_them(
    paper: Schedule, t: int, same: bool
):
    points = pair()
    net = points_eps(points)
    plan = from_t(paper, t, 100)
    decoded = [interpolate(net, paper, plan, points, (0.0, 1.0), seed) for seed in range(6)]
    assert bool(((torch.stack(decoded) - points).abs() < 1e-3).all()) == same


def test_a_weight_decodes_to_the_same_alone_and_among_others(paper: Schedule):
    x_0 = pair()
    plan = from_t(paper, 300, 20)
    among = interpolate(gaussian_eps, paper, plan, x_0, WEIGHTS, 3)
    assert torch.equal(interpolate(gaussian_eps, paper, plan, x_0, WEIGHTS[1:2], 3)[0], among[1])


def test_every_step_is_reported(paper: Schedule):
    steps: list[int] = []
    plan = from_t(paper, 300, 20)
    interpolate(gaussian_eps, paper, plan, pair(), WEIGHTS, 3, lambda: steps.append(1))
    assert len(steps) == 20
