"""Whole chains of one model of each family against diffusers, from the same folder and noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from docs.generate.comparison import randomised
from docs.generate.configurations import PLAIN, Options
from models.checkpoints import diffusers_format
from models.diffusion.noise import normal
from worker.backends.served_network import ServedNetwork
from worker.engine.pool import Pool, columns_of

CPU = torch.device("cpu")
STEPS = 50
SEED = 11
FAMILIES: dict[str, tuple[Options, Options]] = {
    "the paper's": ({"attention_head_dim": None, "downsample_padding": 0}, {}),
    "cosine, sample": (
        {"in_channels": 1, "out_channels": 1},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    ),
    "OpenAI's": (
        {
            "out_channels": 6,
            "resnet_time_scale_shift": "scale_shift",
            "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
        },
        {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"},
    ),
    "of today": (
        {"in_channels": 4, "out_channels": 4, "sample_size": [8, 12], "act_fn": "gelu"},
        {
            "num_train_timesteps": 500,
            "beta_schedule": "squaredcos_cap_v2",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "clip_sample": False,
        },
    ),
    "dynamic thresholds": (
        {},
        {
            "beta_schedule": "sigmoid",
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.9,
            "sample_max_value": 2.0,
        },
    ),
    "skips": (
        {
            "sample_size": 16,
            "block_out_channels": [32, 64],
            "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
            "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
        },
        {"beta_schedule": "laplace", "variance_type": "fixed_large"},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_chain_is_that_of_diffusers(tmp_path, monkeypatch, family):
    network, process = FAMILIES[family]
    net = randomised(UNet2DModel(**(PLAIN | network)))
    scheduler = DDPMScheduler(timestep_spacing="linspace", **process)
    net.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")

    described = diffusers_format.describe(tmp_path)
    loaded = diffusers_format.load_described(described)
    shape = described.config.shape
    plan = loaded.process.plan(STEPS, variance=described.published.variance)
    pool = Pool(
        ServedNetwork(loaded, CPU),
        shape,
        2,
        CPU,
        dynamic=loaded.process.clipping.is_dynamic,
        learned=described.config.learns_variance,
    )
    pool.start([0, 1], [SEED, SEED], [0, 1])
    index = torch.arange(2)

    def noise(draw: int) -> torch.Tensor:
        return normal(torch.full_like(index, SEED), index, torch.full_like(index, draw), shape)

    theirs = noise(0)
    # Their float32 tables lose digits at the ends of a cosine.
    scheduler.alphas_cumprod = loaded.schedule.alpha_bar
    scheduler.set_timesteps(STEPS)
    assert torch.equal(plan.t, scheduler.timesteps)
    for k, t in enumerate(scheduler.timesteps):
        where, *row = plan.row(k)
        pool.step(columns_of([(slot, where, SEED, slot, k + 1, *row) for slot in (0, 1)], 2, 2))
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *_, k=k, **__: noise(k + 1),
        )
        theirs = scheduler.step(net(theirs, t).sample, t, theirs).prev_sample.float()
    assert (pool.read([0, 1]) - theirs).abs().max() <= 1e-3 * max(1.0, float(theirs.abs().max()))
