"""Each option of a network as it is served: the loaded network's numbers, in every batch."""

from __future__ import annotations

import pytest
import torch

from docs.generate.comparison import randomised
from docs.generate.configurations import PLAIN, Options
from models.checkpoints.diffusers_format import Checkpoint
from models.diffusion.process import Process
from models.diffusion.schedule import Schedule
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig
from worker.backends.cpu.kernels import library
from worker.backends.served_network import ServedNetwork, precisions

CPU = torch.device("cpu")
CLOSE = {"fp32": 1e-5, "bf16": 0.2}
SIZE = 5
# PyTorch's activations differ in their last values, which the compiled norm replaces
compiled = pytest.mark.skipif(not library(), reason="worker/backends/cpu/kernels.c is not compiled")


SKIPS = {
    "sample_size": 16,
    "block_out_channels": [32, 64],
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
    "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
}
# one or more for everything that the served layers compute in their own way
CONFIGURATIONS: dict[str, Options] = {
    "plain": {},
    "mish": {"act_fn": "mish"},
    "gelu": {"act_fn": "gelu"},
    "relu": {"act_fn": "relu"},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "out_channels": 6},
    "scale, shift and gelu": {"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"},
    "residual sampling": {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    },
    "heads that do not divide": {"attention_head_dim": 12},
    "so many heads at every width": {
        "attention_head_dim": None,
        "num_attention_heads": 4,
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
    },
    "no middle": {"mid_block_type": None},
    "divided middle": {"mid_block_scale_factor": 1.5, "attn_norm_num_groups": 16},
    "centred": {"center_input_sample": True, "in_channels": 4, "out_channels": 4},
    "not square": {"sample_size": [8, 12], "in_channels": 2, "out_channels": 2},
    "skips": SKIPS,
    "fourier": {"time_embedding_type": "fourier"},
    "classes": {"num_class_embeds": 5, "resnet_time_scale_shift": "scale_shift"},
    "wide timesteps": {"timestep_input_dim": 48, "num_class_embeds": 5},
    "numbered classes": {"class_embed_type": "timestep", "act_fn": "gelu"},
}


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("precision", precisions(CPU))
@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.inference_mode()
def test_a_batch_changes_no_bit_of_a_network(name, precision):
    cfg = UNetConfig.from_diffusers(PLAIN | CONFIGURATIONS[name])
    net = randomised(UNet(cfg))
    torch.manual_seed(0)
    x, t = torch.randn(SIZE, *cfg.shape), torch.tensor([0, 1, 250, 998, 999])
    torch.set_num_threads(1)
    rows = torch.tensor([4, 0, 2, 2, 1]) if cfg.is_conditional else None
    served = Checkpoint(net, Process(Schedule.linear()), "")
    network = ServedNetwork(served, CPU, precision, class_rows=5 * cfg.is_conditional)
    together, expected = network(x, t, rows), net(x, t, rows)
    assert float((together - expected).abs().max() / expected.std()) <= CLOSE[precision]
    for threads, size in ((1, 1), (1, 2), (2, 2)):
        torch.set_num_threads(threads)
        places = [slice(i, i + size) for i in range(0, SIZE, size)]
        parts = [network(x[p], t[p], None if rows is None else rows[p]) for p in places]
        assert torch.equal(torch.cat(parts), together), (threads, size)


def test_a_conditional_network_is_not_served_without_its_classes():
    net = UNet(UNetConfig.from_diffusers(PLAIN | {"num_class_embeds": 10}))
    with pytest.raises(ValueError, match="says 0 rows of classes, and the network 10"):
        ServedNetwork(Checkpoint(net, Process(Schedule.linear()), ""), CPU)
