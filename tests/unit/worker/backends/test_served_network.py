"""The served network against the network as it was loaded, in both precisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import SHIPPED, ScheduleCard
from models.checkpoints.diffusers_format import Checkpoint
from models.diffusion.process import Process
from models.diffusion.schedule import Schedule
from models.networks.families import build
from models.networks.linear_attention_config import LinearAttentionConfig
from models.networks.unet_config import UNetConfig
from tests.support.networks import TINY, random_unet, without_zeros
from worker.backends.served_network import ServedNetwork, by_our_kernels, precisions

CPU = torch.device("cpu")
CLOSE = {"fp32": 1e-5, "bf16": 5e-2}


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return diffusers_format.load(SHIPPED / "fashion-mnist-28")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(n: int, size: int = 28) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(n, 1, size, size), torch.arange(n) * 999 // max(1, n - 1)


def checkpoint_of(folder: Path, cfg: UNetConfig) -> Checkpoint:
    """Write a network of random weights, and load it."""
    schedule = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    diffusers_format.save(folder, cfg, random_unet(cfg=cfg).state_dict(), schedule, "epsilon")
    return diffusers_format.load(folder)


@pytest.mark.parametrize("precision", precisions(CPU))
@torch.inference_mode()
def test_a_served_network_computes_what_the_loaded_one_does(shipped: Checkpoint, precision):
    x, t = inputs(4)
    expected = shipped.net(x, t)
    out = ServedNetwork(shipped, CPU, precision)(x, t)
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() <= CLOSE[precision] * expected.std()


@pytest.mark.parametrize("precision", precisions(CPU))
@torch.inference_mode()
def test_batch_sizes_and_threads_do_not_change_the_bits(shipped: Checkpoint, precision):
    net = ServedNetwork(shipped, CPU, precision)
    x, t = inputs(16)
    torch.set_num_threads(1)
    reference = net(x, t)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for size in (1, 2, 4, 8, 16):
            parts = [net(x[i : i + size], t[i : i + size]) for i in range(0, 16, size)]
            assert torch.equal(torch.cat(parts), reference), (threads, size)


@torch.inference_mode()
def test_several_heads_and_a_symmetric_downsampling_are_served_right(tmp_path: Path):
    loaded = checkpoint_of(tmp_path, replace(TINY, attention_head_dim=4, downsample_padding=1))
    x, t = inputs(3, size=8)
    expected = loaded.net(x, t)
    assert (ServedNetwork(loaded, CPU)(x, t) - expected).abs().max() <= 1e-5 * expected.std()


@torch.inference_mode()
def test_serving_a_checkpoint_leaves_its_network_as_it_was(shipped: Checkpoint):
    x, t = inputs(2)
    before = shipped.net(x, t)
    ServedNetwork(shipped, CPU, "bf16")
    assert torch.equal(shipped.net(x, t), before)
    assert all(p.dtype == torch.float32 for p in shipped.net.parameters())


def test_float32_is_possible_everywhere():
    assert "fp32" in precisions(CPU)


@torch.inference_mode()
def test_no_step_lays_weights_out_anew(shipped: Checkpoint, capfd: pytest.CaptureFixture[str]):
    net = ServedNetwork(shipped, CPU, "fp32")
    x, t = inputs(8)
    runs = [(threads, size) for threads in (1, 2) for size in (1, 2, 8)]

    def run_all() -> None:
        for threads, size in runs:
            torch.set_num_threads(threads)
            net(x[:size], t[:size])

    run_all()
    capfd.readouterr()
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        run_all()
    calls = [line for line in capfd.readouterr().out.splitlines() if ",exec," in line]
    assert len([line for line in calls if ",convolution," in line]) == 28 * len(runs)
    assert [line for line in calls if ",reorder," in line and "x3x3," in line] == []


def linear_attention(side: int) -> Checkpoint:
    """A checkpoint of the other family of networks, with both kinds of attention."""
    cfg = LinearAttentionConfig(
        sample_size=side,
        in_channels=1,
        out_channels=1,
        base_channels=16,
        stem_channels=16,
        block_out_channels=(16, 32),
        full_attention=(False, True),
        attention_heads=(4, 4),
        attention_head_dim=(16, 16),
    )
    torch.manual_seed(0)
    return Checkpoint(without_zeros(build(cfg)), Process(Schedule.linear()), "0" * 64)


@pytest.mark.parametrize("precision", precisions(CPU))
@torch.inference_mode()
def test_linear_attention_is_served_as_it_was_loaded_in_any_batch(precision):
    loaded = linear_attention(16)
    x, t = inputs(6, 16)
    served = ServedNetwork(loaded, CPU, precision)
    expected = loaded.net(x, t)
    torch.set_num_threads(1)
    out = served(x, t)
    # the norms of the trunk are of every position, and so are their rounding errors in bf16
    assert (out - expected).abs().max() <= 2 * CLOSE[precision] * expected.std()
    for size in (1, 2, 3, 4):
        assert torch.equal(served(x[:size], t[:size]), out[:size]), size


def test_linear_attention_is_left_to_pytorch_on_a_gpu(caplog: pytest.LogCaptureFixture):
    pytest.importorskip("triton", reason="Triton is not made for this system")
    net = linear_attention(8).net
    features = net.time_features(torch.zeros(1, dtype=torch.int64))
    assert by_our_kernels(net, features, (1, 2)) is None
    assert "ValueError: they are not made for a LinearAttentionUNet" in caplog.text


def test_a_network_that_our_kernels_cannot_run_is_left_to_pytorch(caplog: pytest.LogCaptureFixture):
    pytest.importorskip("triton", reason="Triton is not made for this system")
    net = random_unet(cfg=TINY)
    features = net.time_features(torch.zeros(1, dtype=torch.int64))
    assert by_our_kernels(net, features, (1, 2)) is None
    reason = "few batch sizes agree to the bit: ValueError: 8 channels are no multiple of 16"
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn gelu"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift scale_shift"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"mid_block_type": None}, "mid_block_type null"),
        ({"mid_block_scale_factor": 2.0}, "mid_block_scale_factor"),
        ({"attention_head_dim": 12}, "heads that do not divide the channels"),
        ({"downsample_type": "resnet"}, "resnet sampling"),
        (
            {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")},
            "resnet sampling",
        ),
    ],
)
def test_an_option_that_our_kernels_are_not_made_for_is_named(
    option: dict, named: str, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("triton", reason="Triton is not made for this system")
    net = random_unet(cfg=replace(TINY, block_out_channels=(16, 32), norm_num_groups=8, **option))
    features = net.time_features(torch.zeros(1, dtype=torch.int64))
    assert by_our_kernels(net, features, (1, 2)) is None
    assert f"ValueError: they are not made for {named}" in caplog.text
