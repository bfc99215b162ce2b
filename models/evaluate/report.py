"""What an evaluation found, as a file and as a picture."""

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
    """Raises ValueError where <folder>/likelihood.json is of another evaluation than `about`, or of more images."""
    path, remedy = folder / FILE, "name another folder with --out, or remove it"
    try:
        found = json.loads(path.read_bytes())
        of = {key: found[key] for key in _IDENTITY}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"{path} is there, and cannot be read as an evaluation; {remedy}"
        ) from None
    for key, value in of.items():
        if value != about[key] and not (
            key == "images" and value < about[key]
        ):  # fewer: the same, ended early
            raise ValueError(
                f"{path} is an evaluation with {key}={value}, this one has {key}={about[key]}; {remedy}"
            )


def write(
    folder: Path,
    about: Mapping[str, Any],
    likelihoods: Mapping[Variance, Likelihood],
    coding: Coding,
) -> None:
    """<folder>/likelihood.json with all of it, and <folder>/coding.png. The folder is there."""
    found = {
        **about,
        "bits_per_dimension": {name: asdict(found) for name, found in likelihoods.items()},
        "coding": asdict(coding),
    }
    write_whole(folder / FILE, f"{json.dumps(found, indent=2, allow_nan=False)}\n".encode())
    draw_coding(folder / "coding.png", coding)


def draw_coding(path: Path, coding: Coding) -> None:
    """As Fig. 5 of the paper: distortion and rate over the steps of the reverse process, and distortion over rate."""
    from matplotlib.figure import Figure  # the train extra; only drawing needs it

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
