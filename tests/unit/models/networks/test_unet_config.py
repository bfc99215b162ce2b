"""The options of diffusers' config.json: read as diffusers reads them, or refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from diffusers import UNet2DModel

from models.networks.network_config import UnsupportedConfig
from models.networks.unet_config import EMA_KEYS, UNetConfig


def test_absent_keys_mean_what_they_mean_in_diffusers():
    defaults = UNet2DModel(sample_size=16, block_out_channels=(32, 32, 32, 32)).config
    ours = UNetConfig.from_diffusers({"sample_size": 16, "block_out_channels": [32, 32, 32, 32]})
    assert ours == UNetConfig.from_diffusers(dict(defaults))
    written = ours.to_diffusers()
    for key, value in defaults.items():
        if not key.startswith("_"):
            assert written[key] == (list(value) if isinstance(value, tuple) else value), key


def test_a_configuration_survives_being_written_and_read(small_config):
    options = {"attention_head_dim": None, "norm_eps": 1e-6, "dropout": 0.1, "add_attention": False}
    for config in (small_config, replace(small_config, **options)):
        assert UNetConfig.from_diffusers(config.to_diffusers()) == config


def test_a_pair_of_equal_sides_is_square():
    assert UNetConfig.from_diffusers({"sample_size": [64, 64]}).sample_size == 64


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"_class_name": "UNet2DConditionModel"},
            "_class_name='UNet2DConditionModel'.*UNet2DModel",
        ),
        (
            {"resnet_time_scale_shift": "spatial"},
            "resnet_time_scale_shift='spatial'.*'default' or 'scale_shift'",
        ),
        ({"class_embed_type": "projection"}, "class_embed_type='projection'.*'timestep' or"),
        ({"num_class_embeds": 0}, "num_class_embeds=0; give 1 to"),
        ({"time_embedding_type": "learned"}, "'learned' needs num_train_timesteps, which is null"),
        ({"time_embedding_dim": 0}, "time_embedding_dim=0"),
        ({"timestep_input_dim": 0}, "timestep_input_dim=0; give 1 to"),
        ({"timestep_input_dim": 1}, "timestep_input_dim is 1; give 2 channels or more"),
        (
            {"timestep_input_dim": 8, "freq_shift": 4},
            "freq_shift=4 does not fit the 4 frequencies of t",
        ),
        (
            {"timestep_input_dim": 448, "time_embedding_type": "fourier"},
            "timestep_input_dim=448 does not fit time_embedding_type='fourier'",
        ),
        ({"act_fn": "tanh"}, "act_fn='tanh' is not supported; use silu, swish, mish, gelu, relu"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type='UNetMidBlock2DCrossAttn'"),
        ({"mid_block_scale_factor": 0}, "mid_block_scale_factor=0.0 divides"),
        ({"downsample_type": "pool"}, "downsample_type='pool'"),
        ({"attn_norm_num_groups": 48}, "attn_norm_num_groups=48 does not divide 896 channels"),
        ({"attn_norm_num_groups": -1}, "attn_norm_num_groups=-1"),
        ({"norm_num_groups": None}, "norm_num_groups=null is for networks of skip blocks only"),
        ({"mystery": 3}, "unknown key mystery=3"),
        ({"sample_size": None}, "sample_size=None; give the image's side"),
        ({"sample_size": []}, "sample_size"),
        ({"sample_size": 30}, "sample_size=30 cannot be halved 3 times; use a multiple of 8"),
        ({"sample_size": 0}, "sample_size=0"),
        ({"out_channels": 5}, "out_channels=5: the network takes more than a picture"),
        *(
            ({"in_channels": n, "out_channels": n}, f"in_channels={n} make no picture; only 1")
            for n in (0, 5)
        ),
        (
            {"down_block_types": ["DownBlock2D"]},
            "down_block_types names 1 levels, block_out_channels 4",
        ),
        (
            {"down_block_types": ["CrossAttnDownBlock2D", *["DownBlock2D"] * 3]},
            "'CrossAttnDownBlock2D'.*AttnDownBlock2D",
        ),
        (
            {"down_block_types": ["DownBlock2D", "SkipDownBlock2D", *["DownBlock2D"] * 2]},
            "holds a skip block below one that is none.*put the skip blocks first",
        ),
        (
            {"up_block_types": ["SkipUpBlock2D", *["UpBlock2D"] * 3]},
            "no skip block above one that is.*put the skip blocks last",
        ),
        (
            {
                "down_block_types": ["SkipDownBlock2D", *["DownBlock2D"] * 3],
                "in_channels": 1,
                "out_channels": 1,
            },
            "skip blocks carry a picture of 3 channels",
        ),
        ({"norm_num_groups": 48}, "norm_num_groups=48 does not divide 224 channels"),
        ({"norm_num_groups": 0}, "norm_num_groups=0"),
        ({"attention_head_dim": 0}, "attention_head_dim=0"),
        ({"attention_head_dim": 4096}, "attention_head_dim=4096"),
        ({"num_attention_heads": 4}, "say the same in two ways; make one of them null"),
        (
            {"attention_head_dim": None, "num_attention_heads": 0},
            "num_attention_heads=0; give 1 to",
        ),
        ({"attention_head_dim": None, "num_attention_heads": 3}, "num_attention_heads=3"),
        ({"block_out_channels": "wide"}, "block_out_channels"),
        ({"block_out_channels": None}, "block_out_channels=None"),
        ({"norm_eps": None}, "norm_eps=None"),
        ({"layers_per_block": 0}, "layers_per_block=0"),
        ({"layers_per_block": 10**400}, r"layers_per_block=10+\.\.\. is too large; give at most"),
        ({"block_out_channels": [10**400]}, r"block_out_channels=\[10+\.\.\. is too large"),
        ({"dropout": [1] * 2000}, r"dropout=\[[1, ]+\.\.\.: Input should be"),
        ({"mystery": "x" * 2000}, r"unknown key mystery='x+\.\.\.; remove it"),
        ({"act_fn": "x" * 2000}, r"act_fn='x+\.\.\. is not supported"),
        ({"layers_per_block": "two"}, "layers_per_block='two'"),
        ({"dropout": "much"}, "dropout='much'"),
        *(({"dropout": value}, f"dropout={value}") for value in (7.0, 1.0, -0.1, float("nan"))),
        *(
            ({"norm_eps": value}, f"norm_eps={value}; give")
            for value in (-5.0, 0.0, float("inf"), float("nan"))
        ),
        ({"downsample_padding": 5}, "downsample_padding=5 is not supported; only 0 and 1 are"),
        (
            {"freq_shift": 112},
            "freq_shift=112 does not fit the 112 frequencies of t; give less than 112",
        ),
        ({"block_out_channels": []}, "block_out_channels holds 0 widths; give 1 to 12"),
        ({"block_out_channels": [2] * 13}, "block_out_channels holds 13 widths"),
        (
            {"block_out_channels": [4_000_000] * 4},
            "block_out_channels holds 4000000; give 1 to 8192 channels",
        ),
        (
            {"block_out_channels": [33, 32, 32, 32]},
            "norm_num_groups=32 does not divide 33 channels",
        ),
        ({"layers_per_block": 10**9}, "layers_per_block=1000000000; give 1 to 64"),
        ({"sample_size": 2**20}, "sample_size=1048576; give 1 to 2048"),
        ({"sample_size": [[8], [8]]}, r"sample_size=\[\[8\], \[8\]\]; give the image's side"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_an_unsupported_option_is_refused_by_name(config, says):
    with pytest.raises(UnsupportedConfig, match=says):
        UNetConfig.from_diffusers({"sample_size": 64, **config})


def test_keys_of_averaged_weights_are_passed_over():
    ema = dict.fromkeys(EMA_KEYS, 1.0)
    assert UNetConfig.from_diffusers({"sample_size": 64, **ema}) == UNetConfig(64)


def test_a_size_that_is_stated_stands_in_for_one_that_is_not():
    config = {"sample_size": None}
    assert UNetConfig.from_diffusers(config, (64, 32)).shape == (3, 64, 32)
    assert UNetConfig.from_diffusers({"sample_size": [64, 32]}).shape == (3, 64, 32)
    assert UNetConfig.from_diffusers(config, (64, 64)).sample_size == 64


def test_a_head_width_matters_only_for_levels_with_attention(small_config):
    """The first level, of 16 channels, has no attention, so heads of 32 fit."""
    assert replace(small_config, attention_head_dim=32).heads(32) == 1
