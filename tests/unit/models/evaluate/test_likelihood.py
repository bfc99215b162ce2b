"""The bound of Eq. 5 against closed forms, the paper's numbers and the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models.diffusion.noise import normal
from models.diffusion.plans import reverse_variance
from models.diffusion.schedule import Posterior, Schedule, linspace_grid
from models.evaluate.likelihood import Evaluation, Terms, decoder_bits, prior_bits, transition_bits

SIGMA_1 = 0.00738457
LEVELS = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8).reshape(1, 1, 1, 6)


def perfect(x: Tensor, t: Tensor) -> Tensor:
    """The eps of a data set of one black image."""
    s = Schedule.linear()
    alpha_bar = s.alpha_bar[t].float()[:, None, None, None]
    return (x + alpha_bar.sqrt()) / (1 - alpha_bar).sqrt()


def blind(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


def pixels(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)


def test_the_decoder_gives_the_levels_their_probabilities():
    """They are those of the error function.

    The paper's code approximates it by a tanh, which is off by up to 4e-4.
    """
    off = 0.003
    mean = LEVELS.double() / 127.5 - 1 + off
    pairs = zip(LEVELS.split(1, dim=3), mean.split(1, dim=3), strict=True)
    nats = [decoder_bits(level, centre, SIGMA_1).item() * math.log(2) for level, centre in pairs]

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf((edge - off) / SIGMA_1 / math.sqrt(2)))

    low, high = below(-1 / 255), below(1 / 255)
    probabilities = (high, *4 * [high - low], 1 - low)
    assert nats == pytest.approx([-math.log(p) for p in probabilities], rel=1e-12)
    assert nats == pytest.approx([0.59846075, *4 * [0.98025336], 0.19169457], abs=4e-4)


def test_the_decoder_is_that_of_index_1(paper: Schedule):
    assert math.log(Posterior(paper).variance[1]) == pytest.approx(-9.81672514, abs=1e-8)


@pytest.mark.parametrize("mean", [-1.0, -0.2, 0.9999])
def test_the_levels_probabilities_sum_to_one(mean: float):
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    bits = decoder_bits(levels, torch.full((256, 1, 1, 1), mean, dtype=torch.float64), 0.05)
    assert (2**-bits).sum().item() == pytest.approx(1, abs=1e-12)


def test_a_level_far_from_the_mean_costs_what_its_tail_costs():
    """The paper's code would stop at 27.6 nats. The tail is a Gaussian's from 1.9 / sigma on."""
    white = torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)
    mean = torch.full((1, 1, 1, 1), -1.0, dtype=torch.float64)
    z = (2 - 1 / 255) / SIGMA_1
    # the upper tail, to first order
    tail = z**2 / 2 + math.log(z * math.sqrt(2 * math.pi))
    assert decoder_bits(white, mean, SIGMA_1).item() * math.log(2) == pytest.approx(tail, rel=1e-6)


def test_a_transition_costs_the_divergence_of_its_gaussians(paper: Schedule):
    x_0, x_0_hat, x_t = (torch.randn(2, 8, dtype=torch.float64) for _ in range(3))
    posterior = Posterior(paper)
    sigma2 = reverse_variance(paper, "fixed_large")
    error = (x_0 - x_0_hat).square().mean(1, keepdim=True).expand(2, paper.T)
    for t in (1, 500, 999):
        q, p = (
            Normal(posterior.of_x_0[t] * x + posterior.of_x_t[t] * x_t, variance[t].sqrt())
            for x, variance in ((x_0, posterior.variance), (x_0_hat, sigma2))
        )
        expected = kl_divergence(q, p).mean(1) / math.log(2)
        assert torch.allclose(transition_bits(paper, sigma2, error)[:, t - 1], expected)


def test_the_prior_costs_the_divergence_from_a_standard_normal(paper: Schedule):
    x_0 = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 2 - 1
    alpha_bar = paper.alpha_bar[-1]
    q = Normal(alpha_bar.sqrt() * x_0, (1 - alpha_bar).sqrt())
    standard = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    expected = kl_divergence(q, standard).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(prior_bits(paper, x_0), expected)
    assert prior_bits(paper, x_0).max() < 1e-4


@pytest.mark.parametrize("steps", [1000, 100, 7])
@pytest.mark.parametrize(("variance", "bits"), [(0.25, 1.047098), (1.0, 2.047098)])
def test_the_bound_for_gaussian_data_is_their_entropy(
    paper: Schedule, variance: float, bits: float, steps: int
):
    """The network is optimal, the variance analytic, and the decoder Gaussian."""
    process = paper.respaced(linspace_grid(steps, paper.T))
    alpha_bar = process.alpha_bar
    unknown = variance * (1 - alpha_bar) / (alpha_bar * variance + 1 - alpha_bar)
    sigma2 = reverse_variance(process, "analytic", unknown)
    transitions = transition_bits(process, sigma2, unknown[None]).sum()
    mean = 0.3
    alpha_bar = process.alpha_bar[-1]
    prior = (alpha_bar * (variance + mean**2) - alpha_bar - (1 - alpha_bar).log()) / 2
    decoder = (1 + (2 * math.pi * unknown[0]).log()) / 2
    assert float(transitions + (prior + decoder) / math.log(2)) == pytest.approx(bits, abs=1e-6)


def test_a_perfect_network_pays_only_for_variances_and_bins(paper: Schedule):
    black = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    evaluation = Evaluation(perfect, paper, "epsilon", 50)
    terms = evaluation.terms(black, 1, range(2))
    assert terms.squared_error.max() < 1e-9
    found = evaluation.likelihood(terms, "fixed_small")
    assert found.rate == pytest.approx(float(terms.prior.mean()), abs=1e-6)
    assert found.bits == pytest.approx(found.rate + found.distortion)
    assert evaluation.likelihood(terms, "fixed_large").rate > found.rate


def test_a_network_that_knows_nothing_pays_for_it(paper: Schedule):
    evaluation = Evaluation(blind, paper, "sample", 50)
    terms = evaluation.terms(pixels(), 1, range(3))
    x_0 = pixels().double() / 127.5 - 1
    expected = x_0.square().flatten(1).mean(1)[:, None].expand(3, 50)
    assert torch.allclose(terms.squared_error, expected, atol=1e-7)
    distortion = evaluation.likelihood(terms, "fixed_small").distortion
    assert distortion > 1000, "no probability is clamped"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_x_0_hat_is_the_samplers(paper: Schedule, prediction: str):
    """Each kind of output that means x_0 = 0 is read as 0."""
    s = Schedule.linear()

    def means_zero(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = s.alpha_bar[t].float()[:, None, None, None]
        if prediction == "epsilon":
            return x / (1 - alpha_bar).sqrt()
        if prediction == "sample":
            return torch.zeros_like(x)
        return x * (alpha_bar / (1 - alpha_bar)).sqrt()

    terms = Evaluation(means_zero, paper, prediction, 10).terms(pixels(), 1, range(3))
    expected = (pixels().double() / 127.5 - 1).square().flatten(1).mean(1)
    assert torch.allclose(terms.squared_error, expected[:, None].expand(3, 10), atol=1e-4)


def test_an_image_has_the_same_terms_in_any_batch(paper: Schedule):
    evaluation = Evaluation(lambda x, t: 0.5 * x, paper, "epsilon", 12)
    together = evaluation.terms(pixels(5), 3, range(10, 15))
    first = evaluation.terms(pixels(5)[:2], 3, [10, 11])
    apart = Terms.joined([first, evaluation.terms(pixels(5)[2:], 3, [12, 13, 14])])
    assert len(apart) == 5
    for name in ("squared_error", "prior", "decoder"):
        assert torch.equal(getattr(together, name), getattr(apart, name)), name
    of_another_seed = evaluation.terms(pixels(5), 4, range(10, 15))
    assert not torch.equal(together.squared_error, of_another_seed.squared_error)


SCHEDULES = {"linear": Schedule.linear(), "cosine": Schedule.cosine()}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [2, 5, 40])
def test_the_bound_is_that_of_eq_5_written_out(
    name: str, prediction: str, variance: str, steps: int
):
    """Distributions give it, one transition after another.

    The network's x_0_hat depends on both of its inputs.
    """

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(0.7 * x) + 0.2 * (t / 1000)[:, None, None, None]

    schedule = SCHEDULES[name]
    evaluation = Evaluation(net, schedule, prediction, steps)
    terms = evaluation.terms(pixels(), 3, range(7, 10))
    tau = linspace_grid(steps, schedule.T)
    process = schedule.respaced(tau)
    posterior = Posterior(process)
    x_0 = pixels().double() / 127.5 - 1
    sigma2 = process.beta if variance == "fixed_large" else posterior.variance
    index = torch.arange(7, 10)
    seed = torch.full_like(index, 3)
    parts = []
    for k, t in enumerate(tau):
        z = normal(seed, index, torch.full_like(index, int(t) + 1), (1, 4, 4)).double()
        alpha_bar = process.alpha_bar[k]
        x_t = (alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * z).float()
        out = net(x_t, t.expand(3)).double()
        x_t = x_t.double()
        estimates = {
            "epsilon": (x_t - (1 - alpha_bar).sqrt() * out) / alpha_bar.sqrt(),
            "v_prediction": alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * out,
            "sample": out,
        }
        x_0_hat = estimates[prediction].clamp(-1, 1)
        if k == 0:
            parts.append(decoder_bits(pixels(), x_0_hat, float(posterior.variance[1].sqrt())))
            continue
        q, p = (
            Normal(posterior.of_x_0[k] * x + posterior.of_x_t[k] * x_t, spread.sqrt())
            for x, spread in ((x_0, posterior.variance[k]), (x_0_hat, sigma2[k]))
        )
        parts.append(kl_divergence(q, p).flatten(1).mean(1) / math.log(2))
    last = Normal(process.alpha_bar[-1].sqrt() * x_0, (1 - process.alpha_bar[-1]).sqrt())
    standard = Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    prior = kl_divergence(last, standard).flatten(1).mean(1) / math.log(2)
    expected = torch.stack([*parts, prior]).sum(0)
    found = evaluation.likelihood(terms, variance)
    assert found.bits == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found.standard_error == pytest.approx(float(expected.std() / math.sqrt(3)), rel=1e-4)
    assert found.distortion == pytest.approx(float(parts[0].mean()), rel=1e-5)
    coding = evaluation.coding(terms, variance)
    gained = torch.tensor(coding.rate).diff()
    last_first = torch.stack(parts[:0:-1]).mean(1).float()
    assert torch.allclose(gained, last_first, rtol=1e-4, atol=1e-7)


def test_progressive_coding_grows_to_the_rate_with_errors_in_grey_levels(paper: Schedule):
    evaluation = Evaluation(blind, paper, "sample", 20)
    terms = evaluation.terms(pixels(), 1, range(3))
    coding = evaluation.coding(terms, "fixed_small")
    assert (coding.timesteps[0], coding.timesteps[-1]) == (999, 0)
    assert coding.rate == sorted(coding.rate)
    assert coding.rate[0] == pytest.approx(float(terms.prior.mean()))
    assert coding.rate[-1] == pytest.approx(evaluation.likelihood(terms, "fixed_small").rate)
    expected = (pixels().double() - 127.5).square().flatten(1).mean(1).mean().sqrt()
    assert coding.rmse == pytest.approx([float(expected)] * 20, rel=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_a_number_of_steps_outside_the_schedule_is_refused(paper: Schedule, steps: int):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        Evaluation(blind, paper, "epsilon", steps)


def test_one_image_has_no_standard_error(paper: Schedule):
    evaluation = Evaluation(blind, paper, "epsilon", 5)
    terms = evaluation.terms(pixels(1), 0, [0])
    assert evaluation.likelihood(terms, "fixed_small").standard_error is None
