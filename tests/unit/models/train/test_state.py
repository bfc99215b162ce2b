"""A state on the disk, and the tensors of the run that resumes from it."""

from __future__ import annotations

import pytest
import torch

from models.networks.unet import UNet
from models.train.data.images import ArrayImages
from models.train.ema import EMA
from models.train.state import Counters, load_state, save_state


@pytest.fixture
def make_run(small_config):
    """`make_run()` makes a network laid out as on CUDA, its average and its optimizer."""

    def make() -> tuple[UNet, EMA, torch.optim.Adam]:
        net = UNet(small_config).to(memory_format=torch.channels_last)
        ema = EMA(dict(net.named_parameters()), 0.99)
        return net, ema, torch.optim.Adam(net.parameters(), fused=True)

    return make


def test_moments_are_laid_out_as_their_parameters(tmp_path, make_run):
    """Otherwise fused Adam on CUDA refuses them."""
    net, ema, optimizer = make_run()
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    images = ArrayImages(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    counters = Counters("recipe", "fp32", data=images.identity)
    save_state(tmp_path, counters, (), net, ema, optimizer)

    fresh, averages, resumed = make_run()
    load_state(tmp_path, "recipe", images, fresh, averages, resumed)
    assert not fresh.conv_in.weight.is_contiguous()
    for before, p in zip(net.parameters(), fresh.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert resumed.state[p][name].stride() == p.stride()
            assert torch.equal(resumed.state[p][name], optimizer.state[before][name])
