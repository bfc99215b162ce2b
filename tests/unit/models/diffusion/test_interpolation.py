"""Interpolation of section 4.4 with networks of which the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.diffusion.interpolation import encode, interpolate
from models.diffusion.noise import normal
from models.diffusion.plans import Plan, ddpm
from models.diffusion.schedule import Schedule, linspace_grid
from tests.support.networks import gaussian_eps, points_eps

WEIGHTS = (0.0, 0.25, 0.5, 1.0)


def from_t(schedule: Schedule, t: int, steps: int, clip: bool = True) -> Plan:
    return ddpm(schedule, linspace_grid(steps, t + 1), "fixed_small", clip=clip)


def pair() -> Tensor:
    return torch.randint(0, 256, (2, 3, 4, 4)) / 127.5 - 1


def test_a_picture_is_encoded_by_equation_4_with_the_noise_of_its_place(paper: Schedule):
    x_0 = pair()
    eps = torch.cat(
        [normal(torch.tensor([9]), torch.tensor([i]), torch.tensor([0]), (3, 4, 4)) for i in (0, 1)]
    )
    alpha_bar = paper.alpha_bar[499].float()
    torch.testing.assert_close(
        encode(paper, x_0, 499, 9), alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    )


def test_where_the_reverse_process_is_linear_the_way_between_two_pictures_is_straight(
    paper: Schedule,
):
    """Of Gaussian data every step is affine in x, and all weights share its noise."""
    decoded = interpolate(
        gaussian_eps, paper, from_t(paper, 500, 50, clip=False), pair(), WEIGHTS, 3
    )
    first, *between, second = decoded
    for weight, x in zip(WEIGHTS[1:-1], between, strict=True):
        torch.testing.assert_close(x, (1 - weight) * first + weight * second, rtol=0, atol=1e-5)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize(("t", "kept"), [(200, True), (999, False)])
def test_of_two_pictures_a_network_that_knows_them_gives_them_back_until_noise_has_taken_all(
    paper: Schedule, t: int, kept: bool
):
    points = pair()

    net, plan = points_eps(points), from_t(paper, t, 100)
    off = torch.stack(
        [interpolate(net, paper, plan, points, (0.0, 1.0), seed) - points for seed in range(6)]
    )
    assert bool((off.abs() < 1e-3).all()) == kept


def test_a_weight_decodes_to_the_same_alone_and_among_others(paper: Schedule):
    x_0, plan = pair(), from_t(paper, 300, 20)
    among = interpolate(gaussian_eps, paper, plan, x_0, WEIGHTS, 3)
    assert torch.equal(interpolate(gaussian_eps, paper, plan, x_0, WEIGHTS[1:2], 3)[0], among[1])


def test_every_step_is_told(paper: Schedule):
    told: list[int] = []
    interpolate(
        gaussian_eps, paper, from_t(paper, 300, 20), pair(), WEIGHTS, 3, lambda: told.append(1)
    )
    assert len(told) == 20
