"""`ddpm models variance`: estimates a model's analytic variance, so that jobs may ask for it."""

from __future__ import annotations

import os

from rich.console import Console

from cli.commands.measure import Measurement, MeasureOptions, errors_as_faults
from cli.faults import Fault
from models.checkpoints.catalog import read_card, write_card
from models.checkpoints.residual_variance import ResidualVariance


def estimate(model: str, options: MeasureOptions) -> None:
    """Write the estimate into the model's folder, and its name into the model's card.

    Ctrl-C ends it early, with an estimate from the images that are done.

    Args:
        model: Name from the catalog, or a folder.
        options: Images, batch size, seed and device.

    Raises:
        Fault: The model, the data or an option cannot be used, or the folder cannot be written to.
    """
    with errors_as_faults():
        measurement = Measurement(model, options, use_residual_variance=False)
        folder = measurement.folder
        weights = measurement.checkpoint.sha256
        card = read_card(folder)
        if card.sha256 != weights:
            raise Fault(
                f"{folder}: the card is of weights {card.sha256[:12]}, not of {weights[:12]}; "
                "write it anew"
            )
        if not os.access(folder, os.W_OK):
            raise Fault(f"{folder} cannot be written to; estimate for a copy of the model")
        terms = measurement.terms()
    residual = ResidualVariance(
        weights=weights,
        data=str(options.data),
        images=len(terms),
        seed=options.seed,
        values=tuple(terms.squared_error.mean(0).tolist()),
    )
    try:
        # Read it again, because that was minutes ago.
        card = read_card(folder)
        # A card must never name an estimate that is not there.
        write_card(folder, card.model_copy(update={"residual_variance": None}))
        write_card(folder, card.model_copy(update={"residual_variance": residual.write(folder)}))
    except OSError as error:
        raise Fault(
            f"{folder} cannot be written to ({error.strerror}); make room there and estimate again"
        ) from None
    Console().print(
        f"estimated for {card.name} on {len(terms)} images; restart the service to serve it",
        soft_wrap=True,
        highlight=False,
    )
    measurement.check_ended(terms)
