"""Schedules and grids against the paper's numbers and diffusers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from models.diffusion.plans import compile_plan
from models.diffusion.schedule import Posterior, Schedule, linspace_grid


@pytest.mark.parametrize(
    ("t", "value"),
    [(0, 0.9999), (1, 0.99978009207), (499, 0.078587242882), (999, 4.0358297654e-5)],
    ids=lambda v: f"{v}",
)
def test_alpha_bar_has_the_papers_values(paper, t, value):
    assert paper.alpha_bar[t].item() == pytest.approx(value, rel=2e-10)


def test_the_posterior_has_the_papers_values(paper):
    posterior = Posterior(paper)
    assert posterior.variance[1].item() == pytest.approx(5.45318766e-5, rel=1e-8)
    assert posterior.variance[999].item() == pytest.approx(0.0199999835, rel=1e-8)
    assert posterior.of_x_0[999].item() == pytest.approx(1.28351487e-4, rel=1e-8)
    assert posterior.of_x_t[999].item() == pytest.approx(0.98994868, rel=1e-8)


def test_the_last_step_of_the_posterior_is_x_0_itself(paper):
    posterior = Posterior(paper)
    assert posterior.of_x_0[0].item() == pytest.approx(1, abs=1e-11)
    assert (posterior.of_x_t[0], posterior.variance[0]) == (0, 0)


def test_tables_stay_in_float64_and_plans_cast_once(paper):
    of_schedule = (paper.beta, paper.alpha, paper.alpha_bar, paper.alpha_bar_prev)
    for table in (*of_schedule, *vars(Posterior(paper)).values()):
        assert table.dtype == torch.float64
    # The coefficient of x_0 at t = 1 is off by 1.7e-4 if it is made of float32 tables.
    a = compile_plan(paper, 1000).rows[-2, 3]
    assert a == Posterior(paper).of_x_0[1].float()


def test_cosine_follows_its_formula_until_beta_reaches_its_cap():
    def f(edge: float) -> float:
        return math.cos((edge / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    s = Schedule.cosine(1000)
    for t in (0, 1, 499, 990):
        assert s.alpha_bar[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-10)
    assert s.beta[-1].item() == 0.999
    assert bool((s.alpha_bar.diff() < 0).all())


def test_cosine_is_the_schedule_of_diffusers():
    betas = DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(Schedule.cosine(1000).beta, betas.double(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("beta", "says"),
    [
        (torch.full((10,), 0.1), r"torch\.float32.*float64"),
        (torch.full((2, 5), 0.1, dtype=torch.float64), r"\(2, 5\).*\(T,\)"),
        (torch.tensor([0.1, 0.0], dtype=torch.float64), r"from 0 to 0\.1.*inside \(0, 1\)"),
        (torch.tensor([1.0, 0.1], dtype=torch.float64), r"to 1; keep it inside"),
        (torch.tensor([0.1, math.nan], dtype=torch.float64), "nan"),
    ],
)
def test_a_beta_that_is_no_variance_is_refused(beta, says):
    with pytest.raises(ValueError, match=says):
        Schedule(beta)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_that_do_not_fit_are_refused_with_the_range(steps):
    with pytest.raises(ValueError, match=rf"steps={steps} .*1000.*use 1 to 1000"):
        linspace_grid(steps, 1000)


@given(st.data())
def test_a_grid_reaches_from_0_to_the_last_timestep_without_duplicates(data):
    T = data.draw(st.integers(2, 5000))
    K = data.draw(st.integers(2, T))
    tau = linspace_grid(K, T)
    assert len(tau) == K
    assert (tau[0], tau[-1]) == (0, T - 1)
    assert bool((tau.diff() > 0).all())
    ideal = np.arange(K) * (T - 1) / (K - 1)
    assert np.abs(tau.numpy() - ideal).max() <= 0.5 + 1e-9


def test_one_step_starts_from_pure_noise():
    assert linspace_grid(1, 1000).tolist() == [999]


def test_the_grid_is_that_of_diffusers_for_every_number_of_steps():
    scheduler = DDPMScheduler(timestep_spacing="linspace")
    for K in range(2, 1001):
        scheduler.set_timesteps(K)
        assert linspace_grid(K, 1000).tolist() == scheduler.timesteps.flip(0).tolist(), f"K = {K}"


def test_respacing_to_all_timesteps_changes_nothing(paper):
    respaced = paper.respaced(torch.arange(1000))
    torch.testing.assert_close(respaced.beta, paper.beta, rtol=1e-11, atol=0)


@given(K=st.integers(1, 1000))
def test_a_respaced_process_has_the_same_alpha_bar_at_its_visits(K):
    paper = Schedule.linear()
    tau = linspace_grid(K, 1000)
    respaced = paper.respaced(tau)
    torch.testing.assert_close(respaced.alpha_bar, paper.alpha_bar[tau], rtol=1e-10, atol=0)


@pytest.mark.parametrize("K", [1, 2, 10])
def test_few_steps_of_a_process_that_leaves_almost_nothing_can_be_planned(K):
    """Its alpha_bar ends at 1e-38, so float64 rounds the beta of one long step to 1."""
    process = Schedule.linear(1000, 1e-4, 0.165)
    assert process.can_be_reversed
    assert torch.isfinite(compile_plan(process, K).rows).all()


def test_a_grid_with_duplicates_is_refused(paper):
    with pytest.raises(ValueError, match="drop its duplicates"):
        paper.respaced(torch.tensor([0, 5, 5, 999]))
