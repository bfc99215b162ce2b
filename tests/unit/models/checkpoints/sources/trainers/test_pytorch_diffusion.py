"""Weights of the paper by the names of pytorch_diffusion, against the network in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.layout import WEIGHTS
from models.checkpoints.sources.opening import open_source
from tests.support.trainers.pytorch_diffusion import PaperUNet

SMALL: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": (1, 2, 2),
    "num_res_blocks": 2,
    "attn_resolutions": (8,),
    "in_channels": 3,
    "resolution": 16,
}


def saved(net: nn.Module, path: Path) -> nn.Module:
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_file(net.state_dict(), path)
    return net.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_resolutions": (16, 4), "ch_mult": (1, 2, 4), "num_res_blocks": 1},
        {"in_channels": 1, "out_ch": 1, "ch_mult": (1,), "attn_resolutions": ()},
    ],
)
def test_a_converted_network_gives_the_same_numbers(tmp_path, changes):
    theirs = saved(PaperUNet(**(SMALL | changes)), tmp_path / "model.safetensors")
    source = open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch")
    described = diffusers_format.describe(source.folder, size=(16, 16))
    ours = diffusers_format.load_described(described).net
    x, t = torch.randn(3, *ours.cfg.shape), torch.tensor([0, 7, 999])
    with torch.no_grad():
        expected = theirs(x, t)
        difference = (ours(x, t) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-5


@pytest.mark.parametrize(
    ("changes", "side", "variance"),
    [
        ({"ch_mult": (1, 2, 2, 2), "attn_resolutions": (16,)}, 32, "fixed_large"),
        ({"ch_mult": (1, 1, 2, 2, 4, 4), "attn_resolutions": (16,)}, 256, "fixed_small"),
    ],
)
def test_the_papers_models_are_known_by_their_shapes(tmp_path, changes, side, variance):
    with torch.device("meta"):
        net = PaperUNet(**(SMALL | changes | {"ch": 128, "resolution": side}))
    held = {name: torch.zeros(tensor.shape) for name, tensor in net.state_dict().items()}
    save_file(held, tmp_path / "model.safetensors")
    source = open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch")
    described = diffusers_format.describe(source.folder)
    assert described.config.shape == (3, side, side)
    assert described.published.variance == variance
    assert any("by its shape" in note and variance in note for note in source.notes)


def test_a_checkpoint_of_ddim_s_trainer_is_its_averages(tmp_path):
    averaged = saved(PaperUNet(**SMALL), tmp_path / "averaged.safetensors").state_dict()
    raw = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in averaged.items()}
    torch.save([raw, {"state": {}, "param_groups": []}, 3, 5000, averaged], tmp_path / "ckpt.pth")
    source = open_source(str(tmp_path / "ckpt.pth"), tmp_path / "scratch")
    assert "in ckpt.pth the weights are item 4 of 5" in source.notes
    alone = open_source(str(tmp_path / "averaged.safetensors"), tmp_path / "other")
    for one, other in zip(
        *(load_file(s.folder / "unet" / WEIGHTS).values() for s in (source, alone)), strict=True
    ):
        assert torch.equal(one, other)


def test_another_size_is_asked_for_and_the_process_is_said_to_be_assumed(tmp_path):
    saved(PaperUNet(**SMALL), tmp_path / "model.safetensors")
    source = open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch")
    assert any(note.startswith("assumed the variance fixed_small") for note in source.notes)
    assert "assumed the paper's process: linear betas, T=1000, epsilon" in source.notes
    with pytest.raises(BadCheckpoint, match="sample_size=None; give the image's side"):
        diffusers_format.describe(source.folder)
    described = diffusers_format.describe(source.folder, size=(16, 16))
    assert (described.published.card.kind, described.published.card.T) == ("linear", 1000)


def without(*beginnings: str) -> Any:
    return lambda held: {k: v for k, v in held.items() if not k.startswith(beginnings)}


def renamed(old: str, new: str) -> Any:
    return lambda held: {k.replace(old, new): v for k, v in held.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("up.1.block.2"), "up has not 3 blocks at each of 3 levels"),
        (without("down.2.block.1"), "down has not 2 blocks at each of 3 levels"),
        (without("up.1.attn.2"), "level 1 has attention in some of its blocks only"),
        (without("down.0.downsample"), r"without a convolution \(resamp_with_conv=False\)"),
        (without("down.1.block.0.conv1"), r"down\.1\.block\.0\.conv1\.weight is missing"),
        (renamed("nin_shortcut", "conv_shortcut"), "is a shortcut of 3x3"),
        (renamed("block_1.norm2", "block_1.norm3"), r"norm3\.\w+ belongs to no network"),
        (renamed("temb.dense.1", "temb.dense.2"), r"dense\.2\.\w+ belongs to no network"),
    ],
)
def test_a_network_that_diffusers_lacks_is_refused(tmp_path, change, says):
    saved(PaperUNet(**SMALL), tmp_path / "whole.safetensors")
    save_file(change(load_file(tmp_path / "whole.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch")


def test_flags_are_refused_with_the_options_that_say_the_same(tmp_path):
    saved(PaperUNet(**SMALL), tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="use --size, --schedule"):
        open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch", flags="--size 3")
