"""Checkpoints of improved- and guided-diffusion, against their network in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.sources.opening import open_source
from models.networks.unet import UNet
from tests.support.trainers.openai import UNetModel

FLAGS = "--image_size 16 --diffusion_steps 1000 --noise_schedule cosine "
HEADS = "--num_head_channels 16 "
SHAPE: dict[str, Any] = {
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 2,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2, 2),
}
# what guided-diffusion's models mostly have
GUIDED: dict[str, Any] = SHAPE | {"num_head_channels": 16}


def saved(net: nn.Module, path: Path) -> nn.Module:
    """Give every weight a value, as the last layers begin at zero, and save the network."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_file(net.state_dict(), path)
    return net.eval()


def converted(path: Path, flags: str) -> UNet:
    scratch = path.with_name("scratch")
    source = open_source(str(path), scratch, flags=flags)
    return diffusers_format.load(source.folder).net


def differences(ours: UNet, theirs: nn.Module, scale: float = 1.0, labels: Any = None) -> float:
    torch.manual_seed(1)
    x = torch.randn(3, *ours.cfg.shape)
    t = torch.tensor([0, 7, 999])
    with torch.no_grad():
        y = theirs(x, t.float() * scale, *(() if labels is None else (labels,)))
        return float((ours(x, t, labels) - y).abs().max() / y.abs().max())


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("new_order", [True, False])
def test_a_network_of_guided_diffusion_gives_its_numbers(
    tmp_path, scale_shift, residual, new_order
):
    net = UNetModel(
        use_scale_shift_norm=scale_shift,
        resblock_updown=residual,
        use_new_attention_order=new_order,
        **GUIDED,
    )
    theirs = saved(net, tmp_path / "model.safetensors")
    flags = f"{FLAGS}{HEADS} --use_new_attention_order {new_order}"
    assert differences(converted(tmp_path / "model.safetensors", flags), theirs) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": (1, 1, 2, 3), "attention_resolutions": (4, 8), "num_res_blocks": 1},
        {"channel_mult": (1, 2), "attention_resolutions": (1,), "out_channels": 3},
        {"channel_mult": (1,), "attention_resolutions": (), "num_res_blocks": 3},
        # as the network for 512 pixels, whose first level is narrower than its embedding
        {"channel_mult": (0.5, 1, 1), "model_channels": 64, "use_scale_shift_norm": True},
        {"channel_mult": (2, 1), "attention_resolutions": (1,)},
    ],
)
def test_levels_and_attention_are_read_from_the_weights(tmp_path, changes):
    net = UNetModel(num_head_channels=32, resblock_updown=True, **(SHAPE | changes))
    theirs = saved(net, tmp_path / "model.safetensors")
    ours = converted(tmp_path / "model.safetensors", FLAGS + "--num_head_channels 32")
    assert differences(ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("T", "scale", "changes"),
    [
        (1000, 1.0, {}),
        (4000, 0.25, {}),
        (4000, 0.25, {"channel_mult": (0.5, 1, 1), "model_channels": 64}),
    ],
)
def test_a_network_of_improved_diffusion_gives_its_numbers(tmp_path, T, scale, changes):
    net = UNetModel(num_heads=4, use_scale_shift_norm=True, **(SHAPE | changes))
    theirs = saved(net, tmp_path / "ema.safetensors")
    flags = f"--image_size 16 --num_heads 4 --diffusion_steps {T} --noise_schedule cosine"
    ours = converted(tmp_path / "ema.safetensors", f"{flags} --rescale_timesteps=True")
    assert differences(ours, theirs, scale) < 1e-5


def test_a_class_conditional_network_keeps_its_classes(tmp_path):
    net = UNetModel(num_classes=5, **GUIDED)
    theirs = saved(net, tmp_path / "model.safetensors")
    ours = converted(tmp_path / "model.safetensors", FLAGS + HEADS + "--class_cond True")
    assert differences(ours, theirs, labels=torch.tensor([0, 4, 2])) < 1e-5


@pytest.mark.parametrize(
    ("flags", "kind", "T", "prediction", "variance"),
    [
        ("linear --diffusion_steps 500 --rescale_timesteps False", "linear", 500, "epsilon", 6),
        ("cosine --diffusion_steps 1000 --predict_xstart True", "cosine", 1000, "sample", 6),
        ("cosine --diffusion_steps 1000 --sigma_small True", "cosine", 1000, "epsilon", 3),
    ],
)
def test_the_process_is_that_of_the_flags(tmp_path, flags, kind, T, prediction, variance):
    net = UNetModel(**(GUIDED | {"out_channels": variance}))
    saved(net, tmp_path / "model.safetensors")
    stated = f"--image_size 16 --num_head_channels 16 --noise_schedule {flags}"
    source = open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch", flags=stated)
    published = diffusers_format.describe(source.folder).published
    assert (published.card.kind, published.card.T) == (kind, T)
    assert published.process.prediction == prediction
    learned = "learned_range" if variance == 6 else None
    assert (published.process.learned_variance, published.variance) == (
        learned,
        "learned" if learned else "fixed_small",
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (None, "say nothing of heads, schedule and output"),
        ("--image_size 16", "lack --diffusion_steps"),
        (FLAGS, "lack --num_heads or --num_head_channels"),
        (FLAGS + "--num_heads 4 --colour red", "'colour', which is no flag"),
        (FLAGS + "--num_heads four", "no whole number"),
        (FLAGS + "--num_heads", "has no value"),
        (FLAGS + "--num_heads 3", "does not divide 64 channels"),
        (FLAGS.replace("1000", "4000") + "--num_heads 4", "lack --rescale_timesteps"),
        (FLAGS.replace("cosine", "sqrt") + "--num_heads 4", "use linear or cosine"),
        (FLAGS + "--num_heads 4 --num_heads_upsample 8", "is another than --num_heads"),
        (FLAGS.replace("16", "0") + "--num_heads 4", "--image_size and --diffusion_steps are 1"),
        (FLAGS + "--num_heads 4 --predict_xstart perhaps", "neither True nor False"),
        (FLAGS + "--num_heads '4", "cannot be read"),
    ],
)
def test_flags_that_weights_do_not_show_are_asked_for(tmp_path, flags, says):
    saved(UNetModel(num_heads=4, **SHAPE), tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch", flags=flags)


def test_diffusers_loads_no_network_whose_embedding_of_timesteps_is_wider(tmp_path):
    shape = GUIDED | {"channel_mult": (0.5, 1, 1), "model_channels": 64}
    saved(UNetModel(**shape), tmp_path / "model.safetensors")
    source = open_source(str(tmp_path / "model.safetensors"), tmp_path / "s", flags=FLAGS + HEADS)
    cfg = diffusers_format.describe(source.folder).config
    assert (cfg.timestep_input_dim, cfg.block_out_channels) == (64, (32, 64, 64))
    assert type(cfg).from_diffusers(cfg.to_diffusers()) == cfg
    with pytest.raises(RuntimeError, match=r"size mismatch for time_embedding\.linear_1\.weight"):
        UNet2DModel.from_pretrained(source.folder / "unet", low_cpu_mem_usage=False)


@pytest.mark.parametrize("new_order", [True, False])
def test_a_number_of_heads_holds_at_every_width(tmp_path, new_order):
    """improved-diffusion's networks for ImageNet are so."""
    shape = SHAPE | {"attention_resolutions": (1, 2), "channel_mult": (1, 2, 3)}
    net = UNetModel(num_heads=4, use_new_attention_order=new_order, **shape)
    theirs = saved(net, tmp_path / "model.safetensors")
    flags = f"{FLAGS} --num_heads 4 --use_new_attention_order {new_order}"
    ours = converted(tmp_path / "model.safetensors", flags)
    assert (ours.cfg.num_attention_heads, ours.cfg.attention_head_dim) == (4, None)
    assert differences(ours, theirs) < 1e-5


def test_a_number_of_heads_that_divides_no_width_is_refused(tmp_path):
    shape = SHAPE | {"attention_resolutions": (1, 2)}
    saved(UNetModel(num_heads=4, **shape), tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="--num_heads 5 does not divide 32 channels"):
        open_source(
            str(tmp_path / "model.safetensors"), tmp_path / "scratch", flags=FLAGS + "--num_heads 5"
        )


def without(pattern: str) -> Any:
    """A change of a file: the tensors whose names begin so are taken out."""
    return lambda held: {k: v for k, v in held.items() if not k.startswith(pattern)}


def renamed(old: str, new: str) -> Any:
    """A change of a file: a part of the names is another."""
    return lambda held: {k.replace(old, new): v for k, v in held.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("input_blocks.4."), "input_blocks are not numbered from 0 on"),
        (without("output_blocks.8."), "levels have different numbers of blocks"),
        (without("input_blocks.8."), "8 input_blocks do not fit 9 output_blocks"),
        (without("input_blocks.4.1."), "level 1 has attention in some of its blocks only"),
        (
            lambda held: held | {"input_blocks.0.0.weight": torch.zeros(16, 3, 3, 3)},
            "first convolution puts out 16 channels, and its first level has 32",
        ),
        (renamed("time_embed.2", "time_embed.3"), r"time_embed\.3\.\w+ belongs to no network"),
        (renamed("out_layers.0", "out_layers.7"), r"out_layers\.7\.\w+ belongs to no network"),
    ],
)
def test_a_damaged_file_is_refused_by_its_fault(tmp_path, change, says):
    saved(UNetModel(**GUIDED), tmp_path / "whole.safetensors")
    save_file(change(load_file(tmp_path / "whole.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch", flags=FLAGS + HEADS)


def test_the_report_says_which_flags_were_assumed_and_which_are_not_needed(tmp_path):
    saved(UNetModel(**GUIDED), tmp_path / "model.safetensors")
    flags = FLAGS + HEADS + "--lr 1e-4 --sigma_small=False"
    notes = open_source(
        str(tmp_path / "model.safetensors"), tmp_path / "scratch", flags=flags
    ).notes
    assert "predict_xstart=False, as --flags leave it out" in notes
    assert "of --flags, not needed: lr" in notes
    assert not any("sigma_small" in note for note in notes)


def test_wrappers_names_are_taken_off_and_flags_of_a_folder_are_refused(tmp_path):
    net = saved(UNetModel(**GUIDED), tmp_path / "plain.safetensors")
    held = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save(held, tmp_path / "ema_0.9999_500000.pt")
    assert differences(converted(tmp_path / "ema_0.9999_500000.pt", FLAGS + HEADS), net) < 1e-5
    with pytest.raises(BadCheckpoint, match="is no file"):
        open_source(str(tmp_path), tmp_path / "scratch", flags=FLAGS)


def test_a_file_of_another_trainer_is_refused_by_its_first_name(tmp_path):
    save_file({"conv.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"the first is conv\.weight"):
        open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch")
