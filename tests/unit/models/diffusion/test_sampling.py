"""The plain loop against known means and variances, known sets of points, and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.diffusion.noise import normal
from models.diffusion.options import UNCLIPPED
from models.diffusion.plans import compile_plan, ddpm
from models.diffusion.sampling import chain, from_bytes, of_class, sample, to_bytes
from models.diffusion.schedule import Schedule, linspace_grid
from tests.support.networks import points_eps


class GaussianNet:
    """E[eps | x_t] for x_0 ~ N(mu, s2 I), as epsilon, x_0 or v."""

    def __init__(
        self, schedule: Schedule, mu: float, s2: float, prediction: str = "epsilon"
    ) -> None:
        self.alpha_bar = schedule.alpha_bar
        self.mu = mu
        self.s2 = s2
        self.prediction = prediction

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        ab = self.alpha_bar[t][:, None, None, None]
        eps = (1 - ab).sqrt() * (x - ab.sqrt() * self.mu) / (ab * self.s2 + 1 - ab)
        x_0 = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
        outputs = {
            "epsilon": eps,
            "sample": x_0,
            "v_prediction": ab.sqrt() * eps - (1 - ab).sqrt() * x_0,
        }
        return outputs[self.prediction].float()


@pytest.mark.parametrize(
    ("name", "mean", "variance"),
    [
        ("fixed_small", 0.299997, 0.246125),
        ("fixed_large", 0.299997, 0.250752),
        ("ddim", 0.299050, 0.248498),
    ],
)
def test_a_run_over_many_pixels_has_the_known_mean_and_variance(paper, name, mean, variance):
    sampler, kind = ("ddim", "fixed_small") if name == "ddim" else ("ddpm", name)
    plan = compile_plan(paper, 1000, sampler, variance=kind, clip=UNCLIPPED)
    x = sample(GaussianNet(paper, 0.3, 0.25), plan, 3, range(4), (1, 32, 32)).double()
    # 4096: one standard error of the mean is .008, of the variance .0055
    n = x.numel()
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert x.var().item() == pytest.approx(variance, abs=4 * variance * math.sqrt(2 / n))


def test_the_analytic_variance_is_right_in_ten_steps_and_fixed_small_is_far_off(paper):
    residual = 0.25 * (1 - paper.alpha_bar) / (paper.alpha_bar * 0.25 + 1 - paper.alpha_bar)
    tau = linspace_grid(10, 1000)
    net = GaussianNet(paper, 0.3, 0.25)
    analytic = ddpm(paper, tau, "analytic", clip=UNCLIPPED, residual_variance=residual)
    exact = sample(net, analytic, 3, range(20), (1, 32, 32))
    small = sample(net, ddpm(paper, tau, "fixed_small", clip=UNCLIPPED), 3, range(20), (1, 32, 32))
    assert exact.var().item() == pytest.approx(0.25, abs=4 * 0.25 * math.sqrt(2 / exact.numel()))
    assert small.var().item() < 0.2


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_finite_training_set_comes_back_point_for_point(paper, sampler):
    """The optimal eps is a softmax over the set, so a chain ends on one of its points."""
    points = torch.randint(0, 256, (5, 3, 4, 4)) / 127.5 - 1
    x = sample(points_eps(points), compile_plan(paper, 250, sampler), 0, range(64), (3, 4, 4))
    distance = (x[:, None] - points).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-3
    assert set(distance.argmin(1).tolist()) == set(range(5))
    assert torch.equal(to_bytes(x), to_bytes(points)[distance.argmin(1)])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_networks_that_predict_x_0_or_v_give_what_eps_gives(paper, sampler, prediction):
    def run(kind: str) -> Tensor:
        net = GaussianNet(paper, 0.3, 0.25, kind)
        return sample(net, compile_plan(paper, 50, sampler, prediction=kind), 1, [5], (3, 8, 8))

    torch.testing.assert_close(run(prediction), run("epsilon"), rtol=0, atol=2e-5)


@pytest.mark.parametrize("K", [1, 7, 50])
def test_the_last_step_returns_x_0_hat_itself_without_noise(paper, K):
    plan = compile_plan(paper, K, variance="fixed_large")
    *_, (x, x_0_hat) = chain(GaussianNet(paper, 0.3, 0.25), plan, 0, [0], (1, 8, 8))
    assert torch.equal(x, x_0_hat)


def test_x_0_hat_is_clipped_before_the_mean_is_formed(paper, noise_of):
    """An output of 5 for x_0 moves the mean as 1 does, and x itself is not clipped."""
    noise_of(lambda draw: torch.full((1, 1, 2, 2), 3.0) if draw == 0 else torch.zeros(1, 1, 2, 2))
    plan = compile_plan(paper, 1000, prediction="sample")
    x, x_0_hat = next(chain(lambda x, t: torch.full_like(x, 5.0), plan, 0, [0], (1, 2, 2)))
    assert torch.equal(x_0_hat, torch.ones(1, 1, 2, 2))
    expected = 1.28351487e-4 * 1 + 0.98994868 * 3
    torch.testing.assert_close(x, torch.full_like(x, expected), rtol=1e-7, atol=0)


def test_the_network_sees_every_timestep_of_the_plan_as_it_is(paper):
    seen = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return torch.zeros_like(x)

    sample(net, compile_plan(paper, 3), 0, [0, 1], (1, 2, 2))
    assert seen == [[999, 999], [500, 500], [0, 0]]


def test_ddpm_with_fixed_small_and_ddim_with_eta_1_make_the_same_images(paper, small_net):
    one, other = (
        sample(small_net, compile_plan(paper, 20, sampler, eta=1.0), 4, [0, 1], (3, 8, 8))
        for sampler in ("ddpm", "ddim")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    assert not torch.equal(one[0], one[1])


def test_the_chain_starts_from_draw_0_and_row_k_takes_draw_k_plus_1(paper):
    plan = compile_plan(paper, 4)
    (x, _), *_ = chain(lambda x, t: torch.zeros_like(x), plan, 9, [6], (1, 4, 4))
    seed, index = torch.tensor([9]), torch.tensor([6])
    x_T, z = (normal(seed, index, torch.tensor([draw]), (1, 4, 4)) for draw in (0, 1))
    p, _, _, a, b, _, s, *_ = plan.rows[0]
    torch.testing.assert_close(x, a * (p * x_T).clamp(-1, 1) + b * x_T + s * z)


def test_an_image_of_a_closed_form_network_does_not_depend_on_its_batch_mates(paper):
    net, plan = GaussianNet(paper, 0.3, 0.25), compile_plan(paper, 10)
    together = sample(net, plan, 7, range(9), (1, 7, 5))
    for index in (0, 4, 8):
        assert torch.equal(sample(net, plan, 7, [index], (1, 7, 5))[0], together[index])


def test_the_numbers_of_diffusers_own_scheduler_test_come_out(paper, noise_of):
    """They are 258.9606 and .3372 for the dummy model x t / (t + 1).

    The test is test_full_loop_no_noise of test_scheduler_ddpm.py.
    """
    generator = torch.Generator().manual_seed(0)
    start = (torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4) / (4 * 3 * 8 * 8)).permute(3, 0, 1, 2)
    noise_of(lambda draw: torch.randn(4, 3, 8, 8, generator=generator) if draw else start)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return x * (t / (t + 1))[:, None, None, None]

    x = sample(net, compile_plan(paper, 1000), 0, range(4), (3, 8, 8))
    assert x.abs().sum().item() == pytest.approx(258.9606, abs=1e-2)
    assert x.abs().mean().item() == pytest.approx(0.3372, abs=1e-3)


def test_every_byte_survives_the_way_to_minus_one_and_one_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_bytes(levels)
    assert (x.dtype, x.min(), x.max()) == (torch.float32, -1, 1)
    assert torch.equal(to_bytes(x), levels)


def test_bytes_are_rounded_and_values_outside_are_clipped():
    x = torch.tensor([-3.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 1.7])
    assert to_bytes(x).tolist() == [0, 0, 0, 1, 255, 255]


def by_row(x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """An estimate and a variance of 10 times the row and of its square, plus x."""
    own = rows[:, None, None, None] * torch.ones_like(x)
    return torch.cat([x + 10 * own, own.square()], dim=1)


@pytest.mark.parametrize(("guidance", "added"), [(1.0, 30.0), (0.0, 50.0), (2.0, 10.0)])
def test_guidance_goes_on_from_the_null_class_and_keeps_the_variance(guidance, added):
    x, t = torch.randn(4, 3, 2, 2), torch.arange(4)
    out = of_class(by_row, 3, null_row=5, guidance=guidance)(x, t)
    torch.testing.assert_close(out, torch.cat([x + added, torch.full_like(x, 9)], dim=1))


def test_guidance_needs_a_null_class():
    with pytest.raises(ValueError, match="guidance=2 needs a null class"):
        of_class(by_row, 3, guidance=2.0)
