"""Plans against closed forms: for x_0 ~ N(mu, s2 I), eps* is affine in x, and so is every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.diffusion.options import CLIPPED, UNCLIPPED
from models.diffusion.plans import COLUMNS, Plan, compile_plan, ddim, ddpm, dpmpp_2m
from models.diffusion.schedule import Schedule, linspace_grid

S = COLUMNS.index("s")
KS = (1, 2, 5, 10, 50, 100, 1000)
PAPER = Schedule.linear()


@dataclass(frozen=True)
class GaussianData:
    mu: float
    s2: float

    def eps(self, alpha_bar: float) -> tuple[float, float]:
        """Slope and offset of eps*(x) = E[eps | x_t = x]."""
        slope = math.sqrt(1 - alpha_bar) / self.marginal(alpha_bar)[1]
        return slope, -slope * math.sqrt(alpha_bar) * self.mu

    def x_0(self, alpha_bar: float) -> tuple[float, float]:
        """Slope and offset of E[x_0 | x_t = x]."""
        slope = math.sqrt(alpha_bar) * self.s2 / self.marginal(alpha_bar)[1]
        return slope, self.mu * (1 - alpha_bar) / self.marginal(alpha_bar)[1]

    def marginal(self, alpha_bar: float) -> tuple[float, float]:
        """Mean and variance of x_t."""
        return math.sqrt(alpha_bar) * self.mu, alpha_bar * self.s2 + 1 - alpha_bar

    def residual_variance(self, alpha_bar: torch.Tensor) -> torch.Tensor:
        """Var(x_0 | x_t), which is the same for every x_t."""
        return self.s2 * (1 - alpha_bar) / (alpha_bar * self.s2 + 1 - alpha_bar)


DATA = [GaussianData(0.3, 0.25), GaussianData(0.3, 1.0)]


def marginals(
    plan: Plan, schedule: Schedule, data: GaussianData, start: tuple[float, float]
) -> list[tuple[float, float]]:
    """Compute mean and variance after each row, in float64.

    (x, x_0_hat_previous) is a GaussianData pair, which the rows map affinely.
    """
    mean = np.array([start[0], 0.0])
    cov = np.diag([start[1], 0.0])
    seen = []
    for t, (p, q, _, a, b, d, s, *_) in zip(
        plan.t.tolist(), plan.rows.double().tolist(), strict=True
    ):
        slope, offset = data.eps(schedule.alpha_bar[t].item())
        x_0_hat = p + q * slope
        step = np.array([[a * x_0_hat + b, d], [x_0_hat, 0.0]])
        mean = step @ mean + np.array([a * q * offset, q * offset])
        cov = step @ cov @ step.T + np.diag([s**2, 0.0])
        seen.append((mean[0], cov[0, 0]))
    return seen


def end(plan: Plan, data: GaussianData) -> tuple[float, float]:
    return marginals(plan, PAPER, data, (0.0, 1.0))[-1]


def analytic(K: int, data: GaussianData) -> Plan:
    residual = data.residual_variance(PAPER.alpha_bar)
    return ddpm(
        PAPER, linspace_grid(K, 1000), "analytic", clip=UNCLIPPED, residual_variance=residual
    )


def plan_named(name: str, K: int, data: GaussianData) -> Plan:
    if name == "analytic":
        return analytic(K, data)
    if name.startswith("fixed"):
        return compile_plan(PAPER, K, "ddpm", variance=name, clip=UNCLIPPED)
    return compile_plan(PAPER, K, "ddim", eta=float(name.removeprefix("ddim ")), clip=UNCLIPPED)


@pytest.mark.parametrize(
    ("s2", "name", "mean", "variance"),
    [
        (0.25, "fixed_small", 0.299997, 0.246125),
        (0.25, "fixed_large", 0.299997, 0.250752),
        (0.25, "analytic", 0.299997, 0.249900),
        (0.25, "ddim 0", 0.299050, 0.248498),
        (1.0, "fixed_small", 0.299988, 0.991067),
        (1.0, "fixed_large", 0.299988, 0.999900),
        (1.0, "analytic", 0.299988, 0.999900),
        (1.0, "ddim 0", 0.298098, 0.996252),
    ],
)
def test_a_thousand_steps_end_at_the_known_mean_and_variance(s2, name, mean, variance):
    data = GaussianData(0.3, s2)
    found = end(plan_named(name, 1000, data), data)
    assert found == pytest.approx((mean, variance), abs=1.2e-6)


def by_equation_12(name: str, K: int, data: GaussianData) -> tuple[float, float]:
    """Compute the end of the chain without a plan or a posterior.

    x' = sqrt(ab') x_0_hat + sqrt(1 - ab' - tilde^2) eps + sigma z
    """
    tau = [round(i * 999 / (K - 1)) for i in range(K)] if K > 1 else [999]
    mean, variance = 0.0, 1.0
    for t, prev in pairwise([*reversed(tau), None]):
        ab = PAPER.alpha_bar[t].item()
        ab_prev = 1.0 if prev is None else PAPER.alpha_bar[prev].item()
        (eps, eps_0), (x_0, x_0_0) = data.eps(ab), data.x_0(ab)
        beta = 1 - ab / ab_prev
        tilde2 = (1 - ab_prev) / (1 - ab) * beta
        if name.startswith("ddim"):
            tilde2 = sigma2 = float(name.removeprefix("ddim ")) ** 2 * tilde2
        elif name == "analytic":
            kept = math.sqrt(ab_prev) - math.sqrt((1 - ab_prev - tilde2) * ab / (1 - ab))
            sigma2 = tilde2 + kept**2 * data.residual_variance(PAPER.alpha_bar[t]).item()
        else:
            sigma2 = beta if name == "fixed_large" else tilde2
        of_eps = math.sqrt(1 - ab_prev - tilde2)
        slope = math.sqrt(ab_prev) * x_0 + of_eps * eps
        mean = slope * mean + math.sqrt(ab_prev) * x_0_0 + of_eps * eps_0
        variance = slope**2 * variance + (sigma2 if prev is not None else 0.0)
    return mean, variance


@pytest.mark.parametrize("data", DATA, ids=str)
@pytest.mark.parametrize("K", KS)
@pytest.mark.parametrize(
    "name", ["fixed_small", "fixed_large", "analytic", "ddim 0", "ddim 0.5", "ddim 1"]
)
def test_every_sampler_ends_where_its_equation_says_for_any_number_of_steps(name, K, data):
    # p reaches 157 at t = 999 and cancels against q. Its last float32 digit is 8e-6, which shows
    # only with the fewest steps.
    tolerance = 2e-6 if K > 2 else 2e-5
    expected = by_equation_12(name, K, data)
    assert end(plan_named(name, K, data), data) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("data", DATA, ids=str)
@pytest.mark.parametrize("K", KS)
def test_the_analytic_variance_makes_every_marginal_exact_for_any_number_of_steps(K, data):
    plan = analytic(K, data)
    alpha_bar = PAPER.alpha_bar[plan.t].tolist()
    seen = marginals(plan, PAPER, data, start=data.marginal(alpha_bar[0]))
    tolerance = 1e-6 if K > 2 else 2e-5
    # each row but the last lands on the next row's marginal
    for found, there in zip(seen[:-1], alpha_bar[1:], strict=True):
        assert found == pytest.approx(data.marginal(there), abs=tolerance)
    variance_of_estimate = data.x_0(alpha_bar[-1])[0] ** 2 * data.marginal(alpha_bar[-1])[1]
    assert seen[-1] == pytest.approx((data.mu, variance_of_estimate), abs=tolerance)


def test_the_analytic_variance_asks_for_its_measurement():
    with pytest.raises(ValueError, match="residual_variance"):
        ddpm(PAPER, linspace_grid(10, 1000), "analytic")


@pytest.mark.parametrize("K", [2, 10, 1000])
def test_the_last_analytic_noise_of_images_is_capped(K):
    """The cap is two grey levels in the mean, or fixed_small if that is more."""
    residual = torch.full((1000,), 0.1, dtype=torch.float64)
    plan = compile_plan(PAPER, K, variance="analytic", residual_variance=residual)
    exact = ddpm(
        PAPER, linspace_grid(K, 1000), "analytic", clip=UNCLIPPED, residual_variance=residual
    )
    drawn = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)).abs().mean() * 127.5
    visible = 2 / drawn
    capped = min(visible.item(), exact.rows[-2, S].item())
    assert plan.rows[-2, S] == pytest.approx(capped, rel=2e-3)
    assert torch.equal(plan.rows[:-2, S], exact.rows[:-2, S])
    steep = Schedule(torch.tensor([0.04, 0.5], dtype=torch.float64))
    least = compile_plan(steep, 2, variance="fixed_small").rows[0, S]
    plan = compile_plan(steep, 2, variance="analytic", residual_variance=residual)
    assert plan.rows[0, S] == least > visible


@given(
    K=st.integers(1, 1000),
    clip=st.sampled_from([CLIPPED, UNCLIPPED]),
    prediction=st.sampled_from(["epsilon", "sample", "v_prediction"]),
)
def test_ddpm_with_fixed_small_is_ddim_with_eta_1(K, clip, prediction):
    tau = linspace_grid(K, 1000)
    one = ddpm(PAPER, tau, "fixed_small", clip=clip, prediction=prediction)
    other = ddim(PAPER, tau, 1.0, clip=clip, prediction=prediction)
    torch.testing.assert_close(one.rows, other.rows, rtol=2e-6, atol=1e-9)
    assert torch.equal(one.t, other.t)


@pytest.mark.parametrize("K", [2, 10, 1000])
def test_ddim_with_eta_0_is_first_order_dpm_solver(K):
    tau = linspace_grid(K, 1000)
    alpha_bar = PAPER.alpha_bar[tau]
    lam = (alpha_bar / (1 - alpha_bar)).log() / 2
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    # Lu et al., 2022: x' = sigma'/sigma x - alpha' (e^-h - 1) x_0_hat
    h = lam[:-1] - lam[1:]
    rows = ddim(PAPER, tau, 0.0).rows.flip(0)[1:].double()
    a, b = rows[:, COLUMNS.index("a")], rows[:, COLUMNS.index("b")]
    torch.testing.assert_close(a, -alpha[:-1] * torch.expm1(-h), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(b, sigma[:-1] / sigma[1:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("K", [1, 2, 3, 20, 1000])
def test_2m_takes_first_order_steps_at_both_ends(K):
    tau = linspace_grid(K, 1000)
    one, two = ddim(PAPER, tau, 0.0).rows, dpmpp_2m(PAPER, tau).rows
    for row in {0, K - 1}:
        torch.testing.assert_close(two[row], one[row], rtol=1e-6, atol=1e-9)
    assert bool((two[1:-1, COLUMNS.index("d")] != 0).all())
    assert dpmpp_2m(PAPER, tau).remembers == (K > 2)
    assert not ddim(PAPER, tau, 0.0).remembers


def test_2m_extrapolates_x_0_hat_by_half_the_ratio_of_its_steps_in_log_snr():
    """D = x_0_hat + h / (2 h_before) (x_0_hat - x_0_hat_previous), Lu et al., 2022.

    The ratio is not 1 here.
    """
    tau = torch.tensor([0, 30, 400, 450, 999])
    lam = [0.5 * math.log(ab / (1 - ab)) for ab in PAPER.alpha_bar[tau].tolist()]
    a, d = (dpmpp_2m(PAPER, tau).rows.flip(0)[:, COLUMNS.index(c)].tolist() for c in "ad")
    first_order = ddim(PAPER, tau, 0.0).rows.flip(0)[:, COLUMNS.index("a")].tolist()
    # row 4 has nothing before it, and row 0 goes to noise 0
    for i in (1, 2, 3):
        extra = (lam[i - 1] - lam[i]) / (2 * (lam[i] - lam[i + 1]))
        assert a[i] == pytest.approx(first_order[i] * (1 + extra), rel=1e-5)
        assert d[i] == pytest.approx(-first_order[i] * extra, rel=1e-5)


def order_of_convergence(sampler: str, Ks: tuple[int, ...]) -> float:
    """Measure minus the slope of log error on log K, against the exact probability-flow solution.

    The error is at noise level tau_0. The process has a log SNR that is smooth to the end: that of
    betas from 1e-4 falls by half a unit in the last steps, however small these are.
    """
    beta = torch.cat([torch.tensor([0.2]), torch.full((20_000,), 3e-4)]).double()
    data = GaussianData(0.3, 0.25)
    schedule = Schedule(beta)
    errors = []
    for K in Ks:
        plan = compile_plan(schedule, K, sampler, clip=UNCLIPPED)
        first, last = (data.marginal(schedule.alpha_bar[t].item()) for t in (-1, 0))
        exact = last[0] + (1.5 - first[0]) * math.sqrt(last[1] / first[1])
        # the last row jumps to noise 0
        before_last, _ = marginals(plan, schedule, data, start=(1.5, 0.0))[-2]
        errors.append(abs(before_last - exact))
    return -np.polyfit(np.log(Ks), np.log(errors), 1)[0]


def test_ddim_converges_with_order_1():
    assert order_of_convergence("ddim", (100, 200, 400, 800)) == pytest.approx(1, abs=0.05)


def test_dpm_solver_2m_converges_with_order_2():
    assert order_of_convergence("dpmpp_2m", (200, 400, 800)) == pytest.approx(2, abs=0.25)


@given(
    K=st.integers(1, 1000),
    sampler=st.sampled_from(["ddpm", "ddim", "dpmpp_2m"]),
    variance=st.sampled_from(["fixed_small", "fixed_large"]),
    eta=st.floats(0, 1),
    clip=st.sampled_from([CLIPPED, UNCLIPPED]),
)
def test_every_plan_starts_at_the_last_timestep_and_ends_with_x_0_hat_itself(
    K, sampler, variance, eta, clip
):
    plan = compile_plan(PAPER, K, sampler, variance=variance, eta=eta, clip=clip)
    assert len(plan) == K
    assert plan.t[0] == 999
    assert plan.t[-1] == (0 if K > 1 else 999)
    assert bool((plan.t.diff() < 0).all())
    assert plan.rows.dtype == torch.float32
    assert not plan.rows.isnan().any()
    last = dict(zip(COLUMNS, plan.rows[-1].tolist(), strict=True))
    assert (last["a"], last["b"], last["d"], last["s"]) == (1, 0, 0, 0)
    assert set(plan.rows[:, COLUMNS.index("bound")].tolist()) == {clip.bound}


@given(T=st.integers(2, 3000), cosine=st.booleans(), data=st.data())
def test_plans_of_any_schedule_are_finite(T, cosine, data):
    schedule = Schedule.cosine(T) if cosine else Schedule.linear(T)
    K = data.draw(st.integers(1, T))
    for sampler in ("ddpm", "ddim", "dpmpp_2m"):
        assert bool(compile_plan(schedule, K, sampler).rows.isfinite().all())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [0, 1001])
def test_no_plan_takes_more_steps_than_the_schedule_has(sampler, steps):
    with pytest.raises(ValueError, match="use 1 to 1000"):
        compile_plan(PAPER, steps, sampler)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_a_row_is_read_as_the_numbers_of_the_tensors(sampler: str):
    plan = compile_plan(Schedule.linear(), 7, sampler)
    expected = [(t, *row) for t, row in zip(plan.t.tolist(), plan.rows.tolist(), strict=True)]
    assert [plan.row(number) for number in range(len(plan))] == expected
    assert len(plan.packed) == 7 * 52
