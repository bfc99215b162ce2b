"""`ddpm interpolate`: what a network sees between two pictures, as a sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from cli.commands.measure import faults_told, find
from cli.device import device_option
from cli.faults import Fault
from models.checkpoints import diffusers_format
from models.checkpoints.diffusers_format import Checkpoint
from models.checkpoints.png import sheet
from models.diffusion.interpolation import interpolate
from models.diffusion.options import FixedVariance
from models.diffusion.plans import Plan, ddpm
from models.diffusion.sampling import from_bytes, to_bytes
from models.diffusion.schedule import linspace_grid
from models.train.data import read_picture


def draw(
    model: str,
    first: Path,
    second: Path,
    ts: Sequence[int],
    between: int,
    steps: int | None,
    variance: FixedVariance | None,
    seed: int,
    device: str,
    out: Path,
) -> None:
    """As Fig. 8 of the paper, a row for each t: a picture, it decoded again, `between` weights, the other decoded, the other.

    `variance` None: fixed_small where `steps` leaves timesteps out, for which fixed_large has too much noise; else the model's.
    """
    _check_out(out)
    with faults_told():
        folder, sha256 = find(model)
        loaded = diffusers_format.load(folder, sha256)
        cfg, where = loaded.net.cfg, device_option(device)
        pair = torch.stack(
            [read_picture(path, cfg.sample_size, cfg.in_channels) for path in (first, second)]
        )
        variance = variance or (
            "fixed_small" if steps and steps <= max(ts) else diffusers_format.read_variance(folder)
        )
        plans = [_plan(loaded, variance, t, steps) for t in ts]
        net, x_0 = loaded.net.to(where), from_bytes(pair.to(where))
        weights = torch.linspace(0, 1, between + 2).tolist()
        rows = []
        with Progress() as progress:
            task = progress.add_task("steps", total=sum(map(len, plans)))
            for plan in plans:
                decoded = interpolate(
                    net, loaded.schedule, plan, x_0, weights, seed, lambda: progress.advance(task)
                )
                rows.append(torch.cat([pair[:1], to_bytes(decoded).cpu(), pair[1:]]))
    try:
        sheet(torch.cat(rows), columns=len(weights) + 2).save(out)
    except (OSError, ValueError) as error:
        raise Fault(f"{out} cannot be saved ({error}); name another PNG with --out") from None
    Console().print(
        f"{out}: a row for t = {', '.join(map(str, ts))}; variance {variance}",
        soft_wrap=True,
        highlight=False,
    )


def _check_out(out: Path) -> None:
    """Before all steps are done, not after them."""
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        reason = f"{out.suffix or 'no suffix'} is no format of pictures"
    elif not out.parent.is_dir():
        reason = f"there is no folder {out.parent}"
    elif out.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        reason = "it cannot be written to"
    else:
        return
    raise Fault(f"{out} cannot be saved ({reason}); name another PNG with --out")


def _plan(loaded: Checkpoint, variance: FixedVariance, t: int, steps: int | None) -> Plan:
    """From timestep t down."""
    T = loaded.schedule.T
    if not 0 <= t < T:
        raise Fault(f"--t {t} is no timestep of the model; give 0 to {T - 1}")
    if steps and steps > t + 1:
        raise Fault(
            f"--steps {steps} is more than the {t + 1} from t = {t} down; give 1 to {t + 1}"
        )
    return ddpm(
        loaded.schedule,
        linspace_grid(steps or t + 1, t + 1),
        variance,
        prediction=loaded.prediction,
    )
