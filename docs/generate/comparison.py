"""Comparisons with diffusers, which docs/reference/models.md lists."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.scheduler_config import Published, read_scheduler
from models.diffusion.noise import normal
from models.diffusion.plans import Plan, compile_plan
from models.networks.network_config import UnsupportedConfig
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig
from worker.engine import step
from worker.engine.pool import columns_of

# of the output's standard deviation, in float32
CLOSE = 1e-5
EQUAL = "equal"
_SHAPE = (3, 4, 4)
_JOB: dict[str, Any] = {"steps": 20, "sampler": "ddpm", "eta": 0.0}
# rows that are compared of a plan
_ROWS = 12


def labels_for(cfg: UNetConfig, count: int) -> Tensor | None:
    """Make the labels that a network takes, or None if it takes none."""
    if not cfg.is_conditional:
        return None
    if cfg.class_embed_type == "identity":
        return torch.randn(count, cfg.time_width)
    return torch.arange(1, count + 1)


@torch.no_grad()
def randomised(net: Any, seed: int = 0) -> Any:
    """Give a network random weights, none of which is zero: a zero would hide what lies before."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values /= max(1, parameter[0].numel()) ** 0.5
        elif name.endswith("weight") and "time_proj" not in name:
            values = 1 + 0.2 * values
        else:
            values *= 0.2
        parameter.copy_(values)
    return net.eval().requires_grad_(False)


@torch.inference_mode()
def compare_network(options: dict[str, Any]) -> str:
    """Compare our network with diffusers' on the same weights: `equal`, or why it is refused.

    Raises:
        AssertionError: The two differ, or weights do not fit.
    """
    try:
        cfg = UNetConfig.from_diffusers(options)
        ours = UNet(cfg).eval()
    except UnsupportedConfig as refusal:
        return f"refused: {refusal}"
    known = UNetConfig.__dataclass_fields__
    unet: Any = UNet2DModel
    theirs = randomised(unet(**{k: v for k, v in options.items() if k in known}))
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(1)
    x, t = torch.randn(2, *cfg.shape), torch.tensor([3, 987])
    labels = labels_for(cfg, 2)
    expected = theirs(x, t, labels).sample
    apart = float((ours(x, t, labels) - expected).abs().max() / expected.std())
    assert apart <= CLOSE, f"the networks differ by {apart:.2g} of a standard deviation"
    return EQUAL


@torch.inference_mode()
def compare_process(options: dict[str, Any]) -> str:
    """Compare the engine's steps with those of diffusers' scheduler, on the same noise.

    Schedules are compared first. Then diffusers' scheduler gets our betas in float64, because its
    own tables are float32, and lose digits where alpha_bar is small.

    Args:
        options: The scheduler's keys, and the job's `steps`, `sampler` and `eta`.

    Returns:
        `equal`, or why the process is refused.

    Raises:
        AssertionError: The two differ.
    """
    job = _JOB | {key: value for key, value in options.items() if key in _JOB}
    config = {key: value for key, value in options.items() if key not in _JOB}
    try:
        published = _read(config)
        T = published.card.T
        job["steps"] = min(job["steps"], T) if "steps" not in options else job["steps"]
        plan = _plan(published, job)
    except (BadCheckpoint, ValueError) as refusal:
        return f"refused: {refusal}"
    theirs = _scheduler(config, published)
    ours = published.process.schedule
    apart = float((theirs.betas.double() - ours.beta).abs().max())
    assert apart <= CLOSE, f"betas differ by {apart:.2g}"
    theirs.betas = ours.beta
    theirs.alphas_cumprod = ours.alpha_bar
    theirs.one = theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(job["steps"])
    assert torch.equal(plan.t, theirs.timesteps), "timesteps differ"
    for number in sorted({round(i * (len(plan) - 1) / (_ROWS - 1)) for i in range(_ROWS)}):
        _compare_row(plan, number, theirs, published, job["eta"])
    return EQUAL


def _read(config: dict[str, Any]) -> Published:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scheduler_config.json"
        path.write_text(json.dumps({"_class_name": "DDPMScheduler", **config}))
        try:
            return read_scheduler(Path(folder))
        except BadCheckpoint as refusal:
            raise BadCheckpoint(str(refusal).replace(f"{folder}/", "")) from None


def _plan(published: Published, job: dict[str, Any]) -> Plan:
    process = published.process
    return compile_plan(
        process.schedule,
        job["steps"],
        job["sampler"],
        variance=published.variance,
        eta=job["eta"],
        prediction=process.prediction,
        clip=process.clipping,
        learned=process.learned_variance,
        spacing=published.spacing,
        offset=published.offset,
    )


def _scheduler(config: dict[str, Any], published: Published) -> Any:
    """Make diffusers' scheduler, with what it has no key for, or gets wrong, in other words."""
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    if known.pop("predict_epsilon", None) is not None:
        known["prediction_type"] = published.process.prediction
    if known.get("variance_type") == "fixed_large_log":
        # it takes the square root of a logarithm
        known["variance_type"] = "fixed_large"
    named: Any = DDIMScheduler if config.get("_class_name") == "DDIMScheduler" else DDPMScheduler
    return named(**known)


def _compare_row(plan: Plan, number: int, theirs: Any, published: Published, eta: float) -> None:
    """Take one row in the engine, and the same step in diffusers."""
    generator = torch.Generator().manual_seed(number)
    learned = published.process.learned_variance
    x = torch.randn(2, *_SHAPE, generator=generator)
    out = torch.randn(2, *_SHAPE, generator=generator)
    if learned:
        v = torch.rand(2, *_SHAPE, generator=generator)
        out = torch.cat([out, 2 * v - 1 if learned == "learned_range" else v], dim=1)
    t, *row = plan.row(number)
    chains = [(slot, t, 7, slot, number + 1, *row) for slot in (0, 1)]
    pool, x_0_hat = x.clone(), torch.zeros_like(x)
    dynamic = published.process.clipping.is_dynamic
    step.advance(columns_of(chains, 2, 2), pool, x_0_hat, out, dynamic)
    index = torch.arange(2)
    z = normal(torch.full_like(index, 7), index, torch.full_like(index, number + 1), _SHAPE)
    if number == len(plan) - 1:
        # diffusers leaves noise in the image if its last timestep is not 0
        z = torch.zeros_like(z)
    after = _their_step(theirs, out.double(), int(t), x.double(), z.double(), eta)
    scale = max(1.0, float(after.abs().max()))
    apart = float((pool.double() - after).abs().max()) / scale
    assert math.isfinite(scale), f"diffusers' step at {int(t)} is not finite"
    assert apart <= CLOSE, f"row {number} differs by {apart:.2g}"


def _their_step(theirs: Any, out: Tensor, t: int, x: Tensor, z: Tensor, eta: float) -> Tensor:
    if type(theirs).__name__ == "DDIMScheduler":
        noise = {"variance_noise": z} if eta else {}
        options = {"eta": eta, "use_clipped_model_output": True, **noise}
        after: Tensor = theirs.step(out, t, x, **options).prev_sample
        return after
    given: Callable[..., Tensor] = lambda *_, **__: z  # noqa: E731
    with patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", given):
        drawn: Tensor = theirs.step(out, t, x).prev_sample
    return drawn
