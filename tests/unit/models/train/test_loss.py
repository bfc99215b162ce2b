"""simple_loss against its expectation, which is known for x_0 ~ N(mu, s2 I)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.diffusion.schedule import Schedule
from models.train.loss import Diffusion, simple_loss

MU, S2 = 0.3, 0.25


class Optimal:
    """E[target | x_t] for each kind of prediction."""

    def __init__(self, s: Schedule, prediction: str) -> None:
        self.ab = s.alpha_bar
        self.prediction = prediction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        ab = self.ab[t][:, None, None, None]
        eps = (1 - ab).sqrt() * (x - ab.sqrt() * MU) / (ab * S2 + 1 - ab)
        x_0 = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
        v = ab.sqrt() * eps - (1 - ab).sqrt() * x_0
        targets = {"epsilon": eps, "sample": x_0, "v_prediction": v}
        return targets[self.prediction].float()


def least(s: Schedule, prediction: str) -> Tensor:
    """The loss of the optimal network at every t: the conditional variance of its target."""
    ab = s.alpha_bar
    of_x_0 = S2 * (1 - ab) / (ab * S2 + 1 - ab)
    of_eps, of_v = of_x_0 * ab / (1 - ab), of_x_0 / (1 - ab)
    return {"epsilon": of_eps, "sample": of_x_0, "v_prediction": of_v}[prediction]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_optimal_network_has_the_known_loss(paper, prediction):
    x_0 = MU + math.sqrt(S2) * torch.randn(40_000, 1, 4, 4)
    loss = simple_loss(Optimal(paper, prediction), Diffusion(paper), x_0, prediction).item()
    expected = least(paper, prediction)
    of_timesteps = expected.var().item() / 40_000
    of_pixels = (2 * expected.square()).mean().item() / x_0.numel()
    error = math.sqrt(of_timesteps + of_pixels)
    assert loss == pytest.approx(expected.mean().item(), abs=4 * error)


def test_a_network_that_returns_zeros_has_loss_1(paper):
    """The loss is the mean over all dimensions of eps squared: not a sum, and not scaled."""
    x_0 = torch.zeros(500, 3, 8, 8)
    loss = simple_loss(lambda x, t: torch.zeros_like(x), Diffusion(paper), x_0)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(1, abs=4 * math.sqrt(2 / (500 * 192)))


def test_timesteps_are_uniform_over_0_to_the_last(paper):
    seen = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    simple_loss(net, Diffusion(paper), torch.zeros(100_000, 1, 1, 1))
    counts = seen[0].bincount(minlength=1000)
    assert len(counts) == 1000
    assert 50 < counts.min() <= counts.max() < 160
    chi2 = ((counts - 100) ** 2 / 100).sum().item()
    assert abs(chi2 - 999) < 4.5 * math.sqrt(2 * 999)


def test_x_t_is_what_the_forward_process_says(paper):
    """Recovering eps from x_t by the schedule's numbers gives loss 0 for any x_0."""
    x_0 = 3 * torch.randn(50, 1, 8, 8)

    def net(x: Tensor, t: Tensor) -> Tensor:
        ab = paper.alpha_bar[t][:, None, None, None]
        return ((x - ab.sqrt() * x_0) / (1 - ab).sqrt()).float()

    assert simple_loss(net, Diffusion(paper), x_0).item() < 1e-8


@pytest.mark.parametrize("t", [0, 500, 999])
def test_v_turns_back_into_x_0_and_eps(paper, t):
    x_0, eps, at = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4), torch.tensor([t])
    diffusion, ab = Diffusion(paper), paper.alpha_bar[t].float()
    x_t, v = diffusion.x_t(x_0, at, eps), diffusion.target(x_0, at, eps, "v_prediction")
    torch.testing.assert_close(ab.sqrt() * x_t - (1 - ab).sqrt() * v, x_0, rtol=0, atol=2e-6)
    torch.testing.assert_close((1 - ab).sqrt() * x_t + ab.sqrt() * v, eps, rtol=0, atol=2e-6)
