"""The U-Net with linear attention, and which family a configuration is of."""

from __future__ import annotations

import pytest
import torch

from models.networks.families import build, read_config
from models.networks.linear_attention_config import LinearAttentionConfig
from models.networks.linear_attention_unet import LinearAttentionUNet
from models.networks.network_config import NetworkConfig, UnsupportedConfig
from models.networks.unet import UNet
from tests.support.networks import TINY

SMALL = LinearAttentionConfig(
    sample_size=8,
    base_channels=16,
    stem_channels=16,
    block_out_channels=(16, 32),
    full_attention=(False, True),
    attention_heads=(2, 4),
    attention_head_dim=(8, 8),
)


def test_a_configuration_is_read_as_it_was_written():
    written = SMALL.to_json()
    assert read_config(written) == SMALL
    assert read_config(written | {"sample_size": None}, (8, 16)).shape == (3, 8, 16)
    assert read_config(written | {"sample_size": [8, 16]}).shape == (3, 8, 16)


def test_class_names_tell_the_family():
    assert isinstance(build(read_config(SMALL.to_json())), LinearAttentionUNet)
    assert isinstance(build(read_config(TINY.to_diffusers())), UNet)
    with pytest.raises(TypeError, match="NetworkConfig is of no family of networks"):
        build(NetworkConfig(8))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention_heads": [4]}, "attention_heads names 1 levels, block_out_channels 2"),
        ({"attention_head_dim": [8, 0]}, "4 heads of 0 channels; give 1 to 1024 each"),
        ({"base_channels": 2}, "base_channels=2; give an even number from 4 to 8192"),
        ({"base_channels": 17}, "base_channels=17; give an even number"),
        ({"memory_tokens": 2000}, "memory_tokens=2000; give 0 to 1024"),
        ({"theta": 1}, "theta=1.0; give more than 1, up to 1e9"),
        ({"norm_num_groups": 5}, "norm_num_groups=5 does not divide 16 channels"),
        ({"norm_num_groups": 0}, "norm_num_groups=0 does not divide 16 channels"),
        ({"sample_size": 9}, "sample_size=9 cannot be halved 1 times; use a multiple of 2"),
        ({"out_channels": 4}, "only 3 channels out, or 6 with learned variances"),
        ({"in_channels": 5, "out_channels": 5}, "in_channels=5 make no picture"),
        ({"block_out_channels": [16] * 13}, "block_out_channels holds 13 widths"),
        ({"stem_channels": 10**6}, "stem_channels holds 1000000; give 1 to 8192"),
        ({"theta": "long"}, "theta='long': Input should be a valid number"),
        ({"dropout": 0.1}, "unknown key dropout=0.1"),
        ({"sample_size": True}, "sample_size=True; give the image's side in pixels"),
    ],
)
def test_options_that_make_no_network_are_refused_by_key_and_value(changes, says):
    with pytest.raises(UnsupportedConfig, match=says):
        read_config(SMALL.to_json() | changes)


def test_labels_are_refused():
    net = build(SMALL)
    with pytest.raises(ValueError, match="takes no class labels; leave them out"):
        net(torch.zeros(1, 3, 8, 8), torch.tensor([1]), torch.tensor([0]))
