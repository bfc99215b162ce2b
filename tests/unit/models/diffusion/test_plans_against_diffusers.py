"""Our rows against the schedulers of diffusers, on the same noise and network.

The tables of diffusers are float32, so the agreement is to 1e-3.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from models.diffusion.options import UNCLIPPED
from models.diffusion.plans import compile_plan, ddim, dpmpp_2m
from models.diffusion.sampling import chain
from models.diffusion.schedule import Schedule, linspace_grid

SHAPE = (2, 3, 4, 4)


def net(x: Tensor, t: Tensor) -> Tensor:
    """A network that is not linear, and so wrong that x_0_hat is clipped here and there."""
    return 0.9 * x + 0.3 * torch.sin(3 * x + t[:, None, None, None] / 100)


@pytest.fixture
def noise(noise_of):
    z = torch.randn(1001, *SHAPE)
    noise_of(lambda draw: z[draw])
    return z


def ours(plan) -> list[tuple[Tensor, Tensor]]:
    return list(chain(net, plan, 0, range(SHAPE[0]), SHAPE[1:]))


def assert_same_steps(plan, step, noise: Tensor, clips: bool) -> None:
    """Compare the chain of `plan` with that of `step(out, t, x, z)`, after every step."""
    theirs = noise[0]
    clipped = 0.0
    for k, (mine, x_0_hat) in enumerate(ours(plan)):
        t = plan.t[k]
        clipped += (x_0_hat.abs() == 1).float().mean().item() / len(plan)
        theirs = step(net(theirs, t.expand(2)), t, theirs, noise[k + 1])
        assert bool(mine.isfinite().all())
        assert (mine - theirs).abs().max() <= 1e-3, f"row {k}"
    assert (0.01 < clipped < 0.99) == clips, clipped


@pytest.mark.parametrize("K", [2, 10, 50, 107, 1000])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddpm_steps_are_those_of_ddpm_scheduler(paper, noise, monkeypatch, variance, prediction, K):
    theirs = DDPMScheduler(
        variance_type=variance,
        clip_sample=True,
        timestep_spacing="linspace",
        prediction_type=prediction,
    )
    theirs.set_timesteps(K)

    def step(out: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: z)
        return theirs.step(out, t, x).prev_sample

    plan = compile_plan(paper, K, variance=variance, prediction=prediction)
    assert torch.equal(plan.t, theirs.timesteps)
    assert_same_steps(plan, step, noise, clips=True)


@pytest.mark.parametrize("first", [0, 19])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_steps_are_those_of_ddim_scheduler(paper, noise, eta, first):
    """The grids have stride T / K, for which that scheduler finds the previous timestep right."""
    theirs = DDIMScheduler(clip_sample=True, timestep_spacing="leading", steps_offset=first)
    theirs.set_timesteps(50)
    plan = ddim(paper, torch.arange(first, 1000, 20), eta)
    assert torch.equal(plan.t, theirs.timesteps)

    def step(out: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        options = {"eta": eta, "use_clipped_model_output": True}
        if eta:
            options["variance_noise"] = z
        return theirs.step(out, int(t), x, **options).prev_sample

    assert_same_steps(plan, step, noise, clips=True)


# diffusers' own warning
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("K", [2, 3, 20, 100])
def test_2m_steps_are_those_of_dpm_solver_multistep_scheduler(paper, noise, K):
    """Nothing is clipped, as that scheduler does not clip."""
    theirs = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    tau = linspace_grid(K, 1000)
    theirs.set_timesteps(timesteps=tau.flip(0).tolist())

    def step(out: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return theirs.step(out, t, x).prev_sample

    assert_same_steps(dpmpp_2m(paper, tau, clip=UNCLIPPED), step, noise, clips=False)


@pytest.mark.parametrize("K", [10, 1000])
def test_a_cosine_chain_is_that_of_ddpm_scheduler(noise, monkeypatch, K):
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    theirs.set_timesteps(K)

    def step(out: Tensor, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: z)
        return theirs.step(out, t, x).prev_sample

    assert_same_steps(compile_plan(Schedule.cosine(1000), K), step, noise, clips=True)
