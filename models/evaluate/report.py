"""The result of an evaluation, as a JSON file and as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.checkpoints.atomic_files import write_whole
from models.diffusion.options import Variance
from models.evaluate.likelihood import Coding, Likelihood

FILE = "likelihood.json"
_IDENTITY = ("weights", "data", "images", "steps", "seed")


def check_replaces(folder: Path, about: Mapping[str, Any]) -> None:
    """Check that a new evaluation may replace <folder>/likelihood.json.

    Args:
        folder: Where results are written.
        about: What the new evaluation is of: weights, data, images, steps, seed and classes.

    Raises:
        ValueError: The file is of another evaluation, or of more images, or cannot be read.
    """
    path = folder / FILE
    remedy = "name another folder with --out, or remove it"
    try:
        found = json.loads(path.read_bytes())
        old = {key: found[key] for key in _IDENTITY} | {"classes": found.get("classes")}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{path} is there, and cannot be read as an evaluation; {remedy}"
        ) from None
    for key, value in old.items():
        # With fewer images it is the same evaluation, which ended early.
        ended_early = key == "images" and value < about[key]
        if value != about[key] and not ended_early:
            raise ValueError(
                f"{path} is an evaluation with {key}={value},"
                f" this one has {key}={about[key]}; {remedy}"
            )


def write(
    folder: Path,
    about: Mapping[str, Any],
    likelihoods: Mapping[Variance, Likelihood],
    coding: Coding,
) -> None:
    """Write <folder>/likelihood.json with all results, and <folder>/coding.png.

    The folder must exist.
    """
    found = {
        **about,
        "bits_per_dimension": {name: asdict(found) for name, found in likelihoods.items()},
        "coding": asdict(coding),
    }
    write_whole(folder / FILE, f"{json.dumps(found, indent=2, allow_nan=False)}\n".encode())
    draw_coding(folder / "coding.png", coding)


def draw_coding(path: Path, coding: Coding) -> None:
    """Plot distortion and rate over the reverse steps, and distortion over rate, as in Fig. 5."""
    # matplotlib is in the train extra, and only plots need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    over_distortion, over_rate, both = figure.subplots(1, 3)
    steps = range(len(coding.timesteps))
    over_distortion.plot(steps, coding.rmse)
    over_distortion.set(xlabel="reverse steps", ylabel="distortion (RMSE of 255)")
    over_rate.plot(steps, coding.rate)
    over_rate.set(xlabel="reverse steps", ylabel="rate (bits/dim)")
    both.plot(coding.rate, coding.rmse)
    both.set(xlabel="rate (bits/dim)", ylabel="distortion (RMSE of 255)")
    figure.savefig(path, dpi=110)
