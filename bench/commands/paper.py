"""The paper's network for CIFAR-10 as a model folder: `python -m bench.commands.paper`.

Give the folder to other benchmarks with `--model`. The network has 35.7 million parameters at 32x32
RGB, and takes 12.4 GFLOP an image-step. Its weights are random, so its images show nothing. No
tensor is all zeros, because a GPU gets through zeros faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from models.checkpoints import diffusers_format
from models.checkpoints.card import make_card
from models.checkpoints.catalog import DataCard, Defaults, ScheduleCard, write_card
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig

NAME = "cifar10-32-random"
CONFIG = UNetConfig(
    sample_size=32,
    in_channels=3,
    out_channels=3,
    block_out_channels=(128, 256, 256, 256),
    layers_per_block=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    norm_eps=1e-6,
    flip_sin_to_cos=False,
    freq_shift=1,
)


def main(
    folder: Annotated[Path, typer.Argument(help="The model's folder")] = Path("runs/models") / NAME,
) -> None:
    """Write the folder, and print where it is."""
    torch.manual_seed(0)
    net = UNet(CONFIG)
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    schedule = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)
    diffusers_format.save(folder, CONFIG, net.state_dict(), schedule, "epsilon")
    card = make_card(
        folder,
        NAME,
        data=DataCard(name="none", licence="none"),
        licence="Apache-2.0",
        provenance="random weights, for benchmarks",
        defaults=Defaults(steps=50),
    )
    write_card(folder, card)
    print(folder)


if __name__ == "__main__":
    typer.run(main)
