"""Checkpoints of denoising-diffusion-pytorch, against network and process in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.diffusers_format import Checkpoint
from models.checkpoints.sources.opening import open_source
from models.checkpoints.sources.source import Source
from models.diffusion.noise import normal
from models.diffusion.sampling import sample
from tests.support.trainers.denoising_diffusion_pytorch import (
    GaussianDiffusion,
    Unet,
    trainers_file,
)

# with 20, its linear betas end at 1
T = 25


def network(**options: Any) -> Unet:
    """A network of two levels without a zero weight."""
    torch.manual_seed(7)
    net = Unet(16, **({"dim_mults": (1, 2)} | options))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


def process(net: Unet, **options: Any) -> GaussianDiffusion:
    return GaussianDiffusion(net, **({"timesteps": T} | options)).eval()


def opened(net: nn.Module, folder: Path, flags: str | None = None) -> Source:
    save_file(net.state_dict(), folder / "model.safetensors")
    return open_source(str(folder / "model.safetensors"), folder / "scratch", flags=flags)


def loaded(source: Source) -> Checkpoint:
    described = diffusers_format.describe(source.folder, size=(8, 8))
    return diffusers_format.load_described(described)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"dim_mults": (1, 2, 4)}, None),
        ({"dim_mults": (2,), "full_attn": (False,), "channels": 1}, None),
        ({"init_dim": 24, "full_attn": (True, False)}, None),
        ({"attn_heads": (2, 4), "attn_dim_head": (16, 8), "num_mem_kv": 3}, None),
        ({"sinusoidal_pos_emb_theta": 500}, "--sinusoidal_pos_emb_theta 500"),
        ({"resnet_block_groups": 8}, None),
        ({"resnet_block_groups": 4}, "--resnet_block_groups 4"),
        ({"num_mem_kv": 0, "resnet_block_groups": 8}, "--attn_heads 4"),
        ({"learned_variance": True}, None),
    ],
)
def test_a_converted_network_gives_the_same_numbers(tmp_path, options, flags):
    net = network(**options)
    ours = loaded(opened(process(net), tmp_path, flags)).net
    x, t = torch.randn(3, *ours.cfg.shape), torch.tensor([0, 7, T - 1])
    with torch.no_grad():
        expected = net(x, t)
        difference = (ours(x, t) - expected).abs().max() / expected.abs().max()
    assert float(difference) < 1e-5


def noise(draw: int) -> Tensor:
    """What `sample` draws for images 0 and 1 of seed 3."""
    index = torch.arange(2)
    return normal(torch.full_like(index, 3), index, torch.full_like(index, draw), (3, 8, 8))


@pytest.mark.parametrize(
    ("objective", "schedule"),
    [
        ("pred_noise", "linear"),
        ("pred_noise", "cosine"),
        ("pred_x0", "sigmoid"),
        ("pred_v", "cosine"),
        ("pred_v", "sigmoid"),
    ],
)
def test_a_whole_chain_gives_the_trainers_own_picture(tmp_path, objective, schedule):
    theirs = process(network(), objective=objective, beta_schedule=schedule)
    ours = loaded(opened(theirs, tmp_path))
    expected = theirs.sample(noise(0), [noise(T - t) for t in range(T)])
    picture = sample(ours.net, ours.process.plan(T), 3, [0, 1], (3, 8, 8))
    difference = (picture - expected).abs().max()
    assert float(difference) < 2e-5


@pytest.mark.parametrize(
    ("options", "kind", "prediction"),
    [
        ({"beta_schedule": "linear", "objective": "pred_noise"}, "linear", "epsilon"),
        ({"beta_schedule": "cosine", "objective": "pred_x0"}, "cosine", "sample"),
        ({"beta_schedule": "sigmoid", "min_snr_gamma": 5}, "trained", "v_prediction"),
        ({"beta_schedule": torch.linspace(0.01, 0.3, T).double()}, "trained", "v_prediction"),
    ],
)
def test_schedule_and_prediction_are_read_from_the_buffers(tmp_path, options, kind, prediction):
    source = opened(process(network(), **options), tmp_path)
    published = diffusers_format.describe(source.folder, size=(8, 8)).published
    assert (published.card.kind, published.card.T) == (kind, T)
    assert published.process.prediction == prediction
    assert f"by its loss_weight the network predicts {prediction}" in source.notes


def test_a_learned_variance_is_a_range_and_its_network_predicts_eps(tmp_path):
    source = opened(process(network(learned_variance=True), objective="pred_v"), tmp_path)
    published = diffusers_format.describe(source.folder, size=(8, 8)).published
    assert published.process.learned_variance == "learned_range"
    assert published.process.prediction == "epsilon"


def test_the_file_of_a_trainer_gives_its_averaged_weights(tmp_path):
    averaged = process(network())
    torch.manual_seed(9)
    latest = process(Unet(16, dim_mults=(1, 2)))
    torch.save(trainers_file(latest, averaged), tmp_path / "model-20.pt")
    source = open_source(str(tmp_path / "model-20.pt"), tmp_path / "scratch")
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([5])
    with torch.no_grad():
        assert torch.allclose(loaded(source).net(x, t), averaged.model(x, t), atol=1e-5)
    assert "before the names of the weights, ema_model. was taken off" in source.notes
    assert "in model-20.pt the weights are ema" in source.notes


def test_the_network_alone_takes_its_process_from_the_flags(tmp_path):
    net = network()
    stated = f"--timesteps {T} --beta_schedule sigmoid --objective pred_v"
    ours = loaded(opened(net, tmp_path, stated))
    expected = process(net, beta_schedule="sigmoid").get_buffer("betas")
    assert torch.allclose(ours.process.schedule.beta.float(), expected, rtol=1e-6)
    assert ours.process.prediction == "v_prediction"


def test_the_report_says_what_was_assumed(tmp_path):
    notes = opened(process(network(resnet_block_groups=8)), tmp_path).notes
    assert "assumed auto_normalize=True: pictures go from -1 to 1 inside" in notes
    assert "assumed resnet_block_groups=8, the default" in notes
    assert "assumed sinusoidal_pos_emb_theta=10000, the default" in notes


def without(*beginnings: str) -> Any:
    return lambda held: {k: v for k, v in held.items() if not k.startswith(beginnings)}


def renamed(old: str, new: str) -> Any:
    return lambda held: {k.replace(old, new): v for k, v in held.items()}


def changed(**tensors: Tensor) -> Any:
    return lambda held: held | {k.replace("__", "."): v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            changed(model__null_classes_emb=torch.ones(4)),
            "it takes classes and guidance of its own",
        ),
        (changed(model__time_mlp__0__weights=torch.ones(4)), "it embeds continuous time"),
        (renamed("downs.0.2.norm", "downs.0.2.fn.norm"), "it is of a release before 1.8"),
        (without("model.mid_attn.to_qkv"), r"mid_attn\.to_qkv\.weight is missing"),
        (without("model.downs.0."), "downs are not numbered from 0 on"),
        (without("model.downs.1.3"), "a level of downs passes nothing on"),
        (without("model.downs.0.2.to_qkv"), r"downs\.0\.2\.to_qkv\.weight is missing"),
        (without("model.downs.0.2.mem_kv"), "give --flags '--attn_heads 4'"),
        (changed(model__downs__0__2__mem_kv=torch.ones(2, 4, 32)), "has not 4 dimensions"),
        (changed(model__downs__0__2__mem_kv=torch.ones(2, 5, 32, 4)), "no three times 5 heads"),
        (changed(model__downs__0__2__mem_kv=torch.ones(2, 4, 32, 7)), r"memories of \[4, 7\]"),
        (changed(model__time_mlp__1__weight=torch.ones(4)), r"time_mlp\.1\.weight has not 2"),
        (changed(betas=torch.ones(2, 2)), r"betas have the shape \[2, 2\]"),
        (without("loss_weight"), "nothing in the file shows what the network predicts"),
        (changed(loss_weight=torch.full((T,), 0.3)), "nothing in the file shows"),
    ],
)
def test_a_file_of_another_network_is_refused_by_its_fault(tmp_path, change, says):
    held = process(network()).state_dict()
    save_file(change(held), tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=says):
        open_source(str(tmp_path / "model.safetensors"), tmp_path / "scratch")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--auto_normalize False", "pictures go from 0 to 1"),
        ("--objective pred_noise", "by its loss_weight it predicts v_prediction"),
        ("--objective eps", "is none of the trainer's; use pred_noise, pred_x0, pred_v"),
        ("--sinusoidal_pos_emb_theta 0", "--sinusoidal_pos_emb_theta 0 is not above 0"),
        ("--sinusoidal_pos_emb_theta 9999999999", "is no whole number of up to 9 digits"),
        ("--timesteps 25", "the file itself shows --timesteps; leave it out"),
        ("--attn_heads 4", "the file itself shows --attn_heads; leave it out"),
        ("--resnet_block_groups 8", "the file itself shows --resnet_block_groups"),
        ("--dim 16", "'dim', which is no flag of this trainer that its files do not show"),
    ],
)
def test_flags_that_contradict_the_file_are_refused(tmp_path, flags, says):
    with pytest.raises(BadCheckpoint, match=says):
        opened(process(network()), tmp_path, flags)


@pytest.mark.parametrize("flags", [None, "--timesteps 25", "--timesteps 25 --beta_schedule sqrt"])
def test_the_network_alone_asks_for_its_process(tmp_path, flags):
    with pytest.raises(BadCheckpoint, match="holds the network without its process; give --flags"):
        opened(network(), tmp_path, flags)


def test_a_network_that_sees_its_last_estimate_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="trained with self_condition=True"):
        opened(process(network(self_condition=True)), tmp_path)
