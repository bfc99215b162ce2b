"""Networks and processes that docs/reference/models.md is made of.

They are those that are published, narrow where the real ones are too heavy, one for each option of
diffusers, and some that are drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

Options = dict[str, Any]

_D, _A, _R, _S, _AS = (
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
)
_U, _B, _RU, _SU, _AU = (
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipUpBlock2D",
    "AttnSkipUpBlock2D",
)
# two levels, which every option below is tried on
PLAIN: Options = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": [_D, _A],
    "up_block_types": [_B, _U],
    "norm_num_groups": 8,
}
_PAPER: Options = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
_SKIPS: Options = {
    "sample_size": 16,
    "block_out_channels": [32, 64],
    "down_block_types": [_S, _AS],
    "up_block_types": [_AU, _SU],
    "norm_num_groups": 32,
}

PUBLISHED: dict[str, Options] = {
    "HF course, butterflies-32": {
        "sample_size": 32,
        "block_out_channels": [32, 64, 64, 128],
        "down_block_types": [_D, _D, _A, _A],
        "up_block_types": [_B, _B, _U, _U],
    },
    "google/ddpm-cifar10-32": _PAPER
    | {
        "sample_size": 32,
        "block_out_channels": [32, 64, 64, 64],
        "down_block_types": [_D, _A, _D, _D],
        "up_block_types": [_U, _U, _B, _U],
    },
    "google/ddpm-cat-256 and its family": _PAPER
    | {
        "sample_size": 32,
        "block_out_channels": [32, 32, 32, 32, 64, 64],
        "down_block_types": [_D, _D, _D, _D, _A, _D],
        "up_block_types": [_U, _B, _U, _U, _U, _U],
    },
    "train_unconditional.py": {
        "sample_size": 32,
        "block_out_channels": [32, 32, 32, 32, 64, 64],
        "down_block_types": [_D, _D, _D, _D, _A, _D],
        "up_block_types": [_U, _B, _U, _U, _U, _U],
    },
    "HF course, grey digits": {
        "sample_size": 28,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [32, 64, 64],
        "down_block_types": [_D, _A, _A],
        "up_block_types": [_B, _B, _U],
    },
    "HF course, class-conditional by 4 more channels": {
        "sample_size": 28,
        "in_channels": 5,
        "out_channels": 1,
        "block_out_channels": [32, 64, 64],
        "down_block_types": [_D, _A, _A],
        "up_block_types": [_B, _B, _U],
    },
    "class-conditional, 10 classes and none": {
        "sample_size": 16,
        "block_out_channels": [32, 64],
        "down_block_types": [_D, _A],
        "up_block_types": [_B, _U],
        "num_class_embeds": 11,
    },
    "openai/diffusers-cd_imagenet64, network": {
        "sample_size": 16,
        "block_out_channels": [32, 64, 96, 128],
        "layers_per_block": 3,
        "down_block_types": [_R, _A, _A, _A],
        "up_block_types": [_B, _B, _B, _RU],
        "num_class_embeds": 1000,
        "attention_head_dim": 32,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "num_train_timesteps": 40,
    },
    "improved-diffusion, 64 pixels, as a UNet2DModel": {
        "sample_size": 16,
        "out_channels": 6,
        "block_out_channels": [32, 64, 96, 128],
        "layers_per_block": 3,
        "down_block_types": [_D, _D, _A, _A],
        "up_block_types": [_B, _B, _U, _U],
        "attention_head_dim": 8,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
    },
    "guided-diffusion, 64 pixels, as a UNet2DModel": {
        "sample_size": 16,
        "out_channels": 6,
        "block_out_channels": [32, 64, 96, 128],
        "layers_per_block": 3,
        "down_block_types": [_R, _A, _A, _A],
        "up_block_types": [_B, _B, _B, _RU],
        "num_class_embeds": 1000,
        "attention_head_dim": 32,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "google/ncsnpp-celebahq-256, network": _SKIPS
    | {
        "block_out_channels": [32, 32, 64, 64],
        "down_block_types": [_S, _S, _AS, _S],
        "up_block_types": [_SU, _AU, _SU, _SU],
        "attention_head_dim": None,
        "mid_block_scale_factor": 1.41421356237,
        "time_embedding_type": "fourier",
        "norm_eps": 1e-6,
    },
    "CompVis/ldm-celebahq-256, network": {
        "sample_size": 16,
        "block_out_channels": [32, 64, 96, 128],
        "down_block_types": [_D, _A, _A, _A],
        "up_block_types": [_B, _B, _B, _U],
        "attention_head_dim": 32,
    },
    "super-resolution by channels": {"sample_size": 64, "in_channels": 6, "out_channels": 3},
}

# one change each of PLAIN
OPTIONS: tuple[Options, ...] = (
    {},
    {"layers_per_block": 2},
    {"layers_per_block": 3},
    *({"act_fn": name} for name in ("silu", "swish", "SiLU", "mish", "gelu", "relu", "tanh")),
    {"resnet_time_scale_shift": "scale_shift"},
    {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    {"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"},
    {"resnet_time_scale_shift": "ada_group"},
    {"resnet_time_scale_shift": "spatial"},
    {"attn_norm_num_groups": 16},
    {"attn_norm_num_groups": 5},
    {"downsample_type": "resnet", "down_block_types": [_A, _A]},
    {"upsample_type": "resnet", "up_block_types": [_B, _B]},
    {"downsample_type": None},
    {"downsample_type": "pool"},
    {"down_block_types": [_R, _A], "up_block_types": [_B, _RU]},
    {"down_block_types": [_R, _R], "up_block_types": [_RU, _RU]},
    {"down_block_types": [_A, _D], "up_block_types": [_U, _B]},
    {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"]},
    {"down_block_types": [_D, "CrossAttnDownBlock2D"]},
    {"up_block_types": [_U]},
    {"add_attention": False},
    {"mid_block_type": None},
    {"mid_block_type": "UNetMidBlock2DCrossAttn"},
    {"mid_block_scale_factor": 1.5},
    {"mid_block_scale_factor": 0},
    {"attention_head_dim": None},
    *({"attention_head_dim": head} for head in (1, 4, 5, 12, 32, 33, 0)),
    *({"norm_num_groups": groups} for groups in (1, 4, 16, 7, None)),
    *({"norm_eps": eps} for eps in (1e-6, 1e-3, 0.0)),
    {"center_input_sample": True},
    {"flip_sin_to_cos": False},
    *({"freq_shift": shift} for shift in (1, 2, -1, 8)),
    {"downsample_padding": 0},
    {"downsample_padding": 2},
    {"time_embedding_dim": 24},
    {"time_embedding_type": "fourier"},
    {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    {"time_embedding_type": "learned"},
    {"num_train_timesteps": 1000},
    {"num_class_embeds": 10},
    {"num_class_embeds": 10, "resnet_time_scale_shift": "scale_shift"},
    {"class_embed_type": "timestep"},
    {"class_embed_type": "timestep", "time_embedding_type": "fourier"},
    {"class_embed_type": "identity"},
    {"class_embed_type": "projection"},
    {"dropout": 0.1},
    {"out_channels": 6},
    *({"in_channels": n, "out_channels": n} for n in (1, 2, 4, 5)),
    *({"in_channels": n, "out_channels": 2 * n} for n in (1, 2, 4)),
    {"in_channels": 4, "out_channels": 3},
    *({"sample_size": size} for size in (16, [8, 12], [12, 8], [8, 8], 7, None)),
    *({"block_out_channels": widths} for widths in ([8, 24], [24, 24], [32, 16], [12, 36])),
    {"block_out_channels": [9, 18], "norm_num_groups": 9, "attention_head_dim": 3},
    {"block_out_channels": [16], "down_block_types": [_A], "up_block_types": [_B]},
    {"decay": 0.9999, "power": 0.75, "use_ema_warmup": True, "optimization_step": 5},
    {"mystery": 3},
    _SKIPS,
    _SKIPS | {"norm_num_groups": None},
    _SKIPS | {"norm_num_groups": None, "down_block_types": [_S, _S], "up_block_types": [_SU, _SU]},
    _SKIPS | {"down_block_types": [_AS, _AS], "up_block_types": [_AU, _AU]},
    _SKIPS | {"up_block_types": [_U, _SU]},
    _SKIPS | {"up_block_types": [_B, _U]},
    _SKIPS | {"down_block_types": [_D, _A]},
    _SKIPS | {"down_block_types": [_S, _D]},
    _SKIPS | {"down_block_types": [_D, _S]},
    _SKIPS | {"up_block_types": [_SU, _U]},
    _SKIPS | {"resnet_time_scale_shift": "scale_shift", "act_fn": "mish"},
    _SKIPS | {"time_embedding_type": "fourier", "mid_block_scale_factor": 2.0},
    _SKIPS | {"in_channels": 1, "out_channels": 1},
)


def drawn(count: int, seed: int = 0) -> Iterator[Options]:
    """Draw networks of all options at once, most of which make a network."""
    chosen = random.Random(seed)
    for _ in range(count):
        levels = chosen.choice([1, 2, 3])
        widths = [chosen.choice([8, 16, 24, 32]) for _ in range(levels)]
        channels = chosen.choice([1, 2, 3, 4])
        side = 2 ** (levels - 1)
        yield {
            "sample_size": [side * chosen.randint(2, 4), side * chosen.randint(2, 4)],
            "in_channels": channels,
            "out_channels": channels * chosen.choice([1, 1, 2]),
            "center_input_sample": chosen.random() < 0.2,
            "time_embedding_dim": chosen.choice([None, None, 20]),
            "freq_shift": chosen.choice([0, 1]),
            "flip_sin_to_cos": chosen.random() < 0.5,
            "down_block_types": [chosen.choice([_D, _A, _R]) for _ in range(levels)],
            "mid_block_type": chosen.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
            "up_block_types": [chosen.choice([_U, _B, _RU]) for _ in range(levels)],
            "block_out_channels": widths,
            "layers_per_block": chosen.choice([1, 2]),
            "mid_block_scale_factor": chosen.choice([1, 1, 1.5]),
            "downsample_padding": chosen.choice([0, 1]),
            "downsample_type": chosen.choice(["conv", "resnet"]),
            "upsample_type": chosen.choice(["conv", "resnet"]),
            "act_fn": chosen.choice(["silu", "swish", "mish", "gelu", "relu"]),
            "attention_head_dim": chosen.choice([None, 3, 4, 8]),
            "norm_num_groups": chosen.choice([1, 4, 8]),
            "attn_norm_num_groups": chosen.choice([None, None, 4]),
            "norm_eps": chosen.choice([1e-5, 1e-6]),
            "resnet_time_scale_shift": chosen.choice(["default", "scale_shift"]),
            "add_attention": chosen.random() < 0.7,
            "class_embed_type": chosen.choice([None, None, None, "timestep", "identity"]),
            "num_class_embeds": chosen.choice([None, None, 10]),
        }


_BETAS = [1e-4 + (0.02 - 1e-4) * i / 49 for i in range(50)]
# diffusers' keys of a scheduler, and `steps`, `sampler` and `eta` of the job that is compared
PROCESSES: tuple[Options, ...] = (
    {},
    *({"steps": steps} for steps in (1, 2, 7, 1000)),
    *({"num_train_timesteps": T, "beta_schedule": "squaredcos_cap_v2"} for T in (1, 2, 4000)),
    {"num_train_timesteps": 100_000, "beta_schedule": "squaredcos_cap_v2", "steps": 1000},
    {"num_train_timesteps": 100_000},
    {"num_train_timesteps": 100_001},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    *(
        {"beta_schedule": name, "prediction_type": prediction}
        for name in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
        for prediction in ("epsilon", "sample", "v_prediction")
    ),
    {"beta_schedule": "exp"},
    {"trained_betas": _BETAS, "num_train_timesteps": 50},
    {"trained_betas": _BETAS},
    {"predict_epsilon": True},
    {"predict_epsilon": False},
    {"predict_epsilon": False, "prediction_type": "epsilon"},
    {"prediction_type": "flow_prediction"},
    *(
        {"variance_type": name}
        for name in (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
            "guessed",
        )
    ),
    {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2", "steps": 1000},
    {"variance_type": "learned_range", "prediction_type": "v_prediction", "clip_sample": False},
    {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 2.0},
    {"clip_sample": False},
    {"clip_sample": False, "prediction_type": "v_prediction"},
    *({"clip_sample_range": bound} for bound in (0.5, 2.0, 0)),
    *(
        {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": most}
        for ratio in (0.5, 0.9, 0.995, 1.0)
        for most in (1.0, 2.0, 100.0)
    ),
    {"thresholding": True, "dynamic_thresholding_ratio": 1.5},
    *(
        {"rescale_betas_zero_snr": True, "beta_schedule": name, "prediction_type": prediction}
        for name in ("linear", "scaled_linear", "squaredcos_cap_v2")
        for prediction in ("v_prediction", "sample", "epsilon")
    ),
    {
        "rescale_betas_zero_snr": True,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "num_train_timesteps": 500,
        "timestep_spacing": "trailing",
    },
    *(
        {"timestep_spacing": spacing, "steps_offset": offset, "steps": steps}
        for spacing in ("leading", "trailing", "linspace")
        for offset in (0, 1)
        for steps in (3, 50, 999)
    ),
    {"timestep_spacing": "leading", "steps_offset": 1, "steps": 1000},
    *(
        {"_class_name": "DDIMScheduler", "sampler": "ddim", "eta": eta} | options
        for eta in (0.0, 0.5, 1.0)
        for options in (
            {},
            {"clip_sample": False},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"thresholding": True, "sample_max_value": 3.0, "prediction_type": "sample"},
            {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 1},
            {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear"},
        )
    ),
    {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    {"_class_name": "CMStochasticIterativeScheduler"},
    {"_class_name": "ScoreSdeVeScheduler"},
    {"timestep_type": "continuous"},
    {"mystery": 3},
)


def drawn_processes(count: int, seed: int = 0) -> Iterator[Options]:
    """Draw processes of all options at once."""
    chosen = random.Random(seed)
    for _ in range(count):
        yield {
            "num_train_timesteps": chosen.choice([50, 500, 1000, 2000]),
            "beta_schedule": chosen.choice(
                ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
            ),
            "beta_end": chosen.choice([0.012, 0.02]),
            "prediction_type": chosen.choice(["epsilon", "sample", "v_prediction"]),
            "variance_type": chosen.choice(["fixed_small", "fixed_large", "learned_range"]),
            "clip_sample": chosen.random() < 0.6,
            "clip_sample_range": chosen.choice([1.0, 1.5]),
            "thresholding": chosen.random() < 0.3,
            "dynamic_thresholding_ratio": chosen.choice([0.9, 0.995]),
            "sample_max_value": chosen.choice([1.0, 4.0]),
            "rescale_betas_zero_snr": chosen.random() < 0.3,
            "timestep_spacing": chosen.choice(["linspace", "leading", "trailing"]),
            "steps_offset": chosen.choice([0, 1]),
            "steps": chosen.choice([5, 20, 49]),
        }
