"""`ddpm models variance`: estimate what a model's analytic variance is made of, so that jobs may ask for it."""

from __future__ import annotations

import os

from rich.console import Console

from cli.commands.measure import Measure, Measured, faults_told
from cli.faults import Fault
from models.checkpoints.catalog import read_card, write_card
from models.checkpoints.residual_variance import ResidualVariance


def estimate(model: str, wanted: Measure) -> None:
    """Beside the model's card, which names it from then on. Ctrl-C leaves an estimate from the pictures that are done."""
    with faults_told():
        measured = Measured(model, wanted, anew=True)
        folder, weights = measured.folder, measured.checkpoint.sha256
        card = read_card(folder)
        if card.sha256 != weights:
            raise Fault(
                f"{folder}: the card is of weights {card.sha256[:12]}, not of {weights[:12]}; write it anew"
            )
        if not os.access(folder, os.W_OK):
            raise Fault(f"{folder} cannot be written to; estimate for a copy of the model")
        terms = measured.terms()
    values = tuple(terms.squared_error.mean(0).tolist())
    found = ResidualVariance(
        weights=weights, data=str(wanted.data), images=len(terms), seed=wanted.seed, values=values
    )
    try:
        card = read_card(folder)  # again: that was minutes ago
        write_card(
            folder, card.model_copy(update={"residual_variance": None})
        )  # so that it never names what is not there
        write_card(folder, card.model_copy(update={"residual_variance": found.write(folder)}))
    except OSError as error:
        raise Fault(
            f"{folder} cannot be written to ({error.strerror}); make room there and estimate again"
        ) from None
    Console().print(
        f"estimated for {card.name} on {len(terms)} images; restart the service to serve it",
        soft_wrap=True,
        highlight=False,
    )
