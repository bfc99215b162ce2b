"""Model folders with weights, small enough to be made in a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.checkpoints import diffusers_format
from models.checkpoints.card import StatedClasses, make_card
from models.checkpoints.catalog import (
    Card,
    ClassesCard,
    DataCard,
    Defaults,
    ScheduleCard,
    write_card,
)
from models.checkpoints.residual_variance import ResidualVariance
from tests.support.networks import TINY, random_unet

LINEAR = ScheduleCard(kind="linear", T=1000, beta_start=1e-4, beta_end=0.02)


def write_model(
    root: Path,
    name: str,
    *,
    blow_up: bool = False,
    analytic: bool = False,
    seed: int = 0,
    classes: ClassesCard | None = None,
) -> Card:
    """Write a random 8x8 network.

    Args:
        root: The folder's parent.
        name: The folder's and the model's name.
        blow_up: Make the output infinite, with finite weights.
        analytic: Add an estimate for that variance, which is made up.
        seed: Seed of the weights.
        classes: Its classes. None: it takes no labels.
    """
    config = replace(TINY, num_class_embeds=classes.rows) if classes else TINY
    net = random_unet(seed, config)
    state = net.state_dict()
    if blow_up:
        state["conv_out.weight"] = state["conv_out.weight"].sign() * 3e38
    diffusers_format.save(root / name, config, state, LINEAR, "epsilon")
    if analytic:
        values = tuple(k / LINEAR.T for k in range(LINEAR.T))
        found = ResidualVariance(
            weights=diffusers_format.load(root / name).sha256,
            data="none",
            images=1,
            seed=0,
            values=values,
        )
        found.write(root / name)
    card = make_card(
        root / name,
        name,
        data=DataCard(name="none", licence="none"),
        licence="Apache-2.0",
        provenance="made by a test",
        defaults=Defaults(steps=20),
        classes=StatedClasses(classes.names, classes.null) if classes else None,
    )
    write_card(root / name, card)
    return card
