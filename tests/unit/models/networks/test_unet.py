"""Our U-Net against diffusers' `UNet2DModel`, with random weights none of which is zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from models.networks.embeddings import Sinusoid
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig

PUBLISHED = {
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CIFAR10_32 = {
    **PUBLISHED,
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
AT_256 = {
    **PUBLISHED,
    "sample_size": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
# the rest as diffusers has it
DEFAULTS = {"sample_size": 16, "block_out_channels": [32, 64, 96, 128]}
# the published options with few channels
NARROW = {
    **PUBLISHED,
    "sample_size": 16,
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def difference(a: Tensor, b: Tensor) -> float:
    """Measure the worst pixel's difference, in units of the output's standard deviation."""
    return ((a - b).abs().max() / b.std()).item()


def both(config: dict, randomise) -> tuple[UNet2DModel, UNet]:
    with torch.device("meta"):
        theirs, ours = UNet2DModel(**config), UNet(UNetConfig.from_diffusers(config))
    theirs = randomise(theirs.to_empty(device="cpu")).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return theirs, ours.eval()


def inputs(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, size, size), torch.tensor([3, 987])


@pytest.mark.parametrize(
    ("config", "size", "parameters"),
    [
        (CIFAR10_32, 32, 35_746_307),
        (AT_256, 64, 113_673_219),
        (DEFAULTS, 16, None),
        (NARROW, 16, None),
    ],
    ids=["cifar10-32", "256 pixels, run at 64", "defaults", "narrow"],
)
def test_the_network_is_that_of_diffusers(config, size, parameters, randomise):
    theirs, ours = both(config, randomise)
    if parameters:
        assert ours.parameter_count() == parameters
    x, t = inputs(size)
    with torch.inference_mode():
        assert difference(ours(x, t), theirs(x, t).sample) < 1e-5


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("downsample_padding", 1),
        ("flip_sin_to_cos", True),
        ("freq_shift", 0),
        ("norm_eps", 1e-5),
        ("attention_head_dim", 8),
    ],
)
def test_a_wrong_flag_is_noticed(flag, value, randomise):
    """The comparison above can fail: each option alone moves the output by more than it allows."""
    theirs, ours = both(NARROW, randomise)
    other = UNet(replace(ours.cfg, **{flag: value})).eval()
    other.load_state_dict(ours.state_dict())
    x, t = inputs(16)
    with torch.inference_mode():
        right, wrong = (difference(net(x, t), theirs(x, t).sample) for net in (ours, other))
    assert wrong > max(1e-5, 10 * right)


def test_a_timestep_off_by_one_is_noticed(randomise):
    theirs, ours = both(NARROW, randomise)
    x, t = inputs(16)
    with torch.inference_mode():
        assert difference(ours(x, t + 1), theirs(x, t).sample) > 1e-3


@pytest.mark.parametrize(
    "flags", [{"flip_sin_to_cos": False, "freq_shift": 1}, {}], ids=["published", "defaults"]
)
def test_the_sinusoid_is_that_of_diffusers_to_the_bit(small_config, flags):
    t, cfg = torch.arange(1000), replace(small_config, **flags)
    theirs = get_timestep_embedding(
        t, 16, flip_sin_to_cos=cfg.flip_sin_to_cos, downscale_freq_shift=cfg.freq_shift
    )
    assert torch.equal(Sinusoid(cfg)(t), theirs)


def test_a_table_of_time_features_gives_what_forward_gives(small_net):
    x, t = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 500, 998, 999])
    table = small_net.time_features(torch.arange(1000))
    torch.testing.assert_close(small_net.denoise(x, table[t]), small_net(x, t), rtol=0, atol=1e-5)
    assert (table[1:] != table[:-1]).any(1).all()


def test_every_residual_block_has_its_own_columns_of_the_time_features(small_net):
    columns = [range(b.columns.start, b.columns.stop) for b in small_net.residual_blocks]
    width = small_net.time_features(torch.tensor([0])).shape[1]
    assert sorted(i for c in columns for i in c) == list(range(width))


def test_a_fresh_network_gives_zero_and_its_residual_branches_are_silent(small_config):
    net = UNet(small_config)
    assert not net(torch.randn(1, 3, 8, 8), torch.tensor([5])).any()
    for block in net.residual_blocks:
        x = torch.randn(1, block.norm1.num_channels, 8, 8)
        shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
        assert torch.equal(block(x, net.time_features(torch.tensor([5]))), shortcut)


def test_every_parameter_takes_part(small_config, randomise):
    net = randomise(UNet(small_config))
    net(torch.randn(2, 3, 8, 8), torch.tensor([1, 900])).square().mean().backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert None not in gradients.values()
    # softmax does not see the keys' bias, so its gradient is rounding alone
    silent = {name for name, gradient in gradients.items() if gradient.abs().max() < 1e-9}
    assert {name for name in silent if "to_k.bias" not in name} == set()


def test_dropout_acts_in_training_only(small_config, randomise):
    net = randomise(UNet(replace(small_config, dropout=0.5)))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    with torch.no_grad():
        assert not torch.equal(net(x, t), net(x, t))
        assert torch.equal(net.eval()(x, t), net(x, t))
