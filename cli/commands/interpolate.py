"""`ddpm interpolate`: draws what a network sees between two images, as a sheet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from cli.commands.measure import errors_as_faults, find_model
from cli.device import device_option
from cli.faults import Fault
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import ClassesCard, read_classes
from models.checkpoints.diffusers_format import Checkpoint, Description
from models.checkpoints.images import sheet
from models.diffusion.interpolation import interpolate
from models.diffusion.options import PublishedVariance
from models.diffusion.plans import Plan, ddpm
from models.diffusion.sampling import Network, from_bytes, of_class, to_bytes
from models.diffusion.schedule import linspace_grid
from models.train.data.images import listed
from models.train.data.picture import read_picture

_MOST_GUIDANCE = 100


def draw(
    model: str,
    first: Path,
    second: Path,
    ts: Sequence[int],
    between: int,
    steps: int | None,
    variance: PublishedVariance | None,
    seed: int,
    device: str,
    out: Path,
    label: str | None = None,
    guidance: float | None = None,
) -> None:
    """Draw a sheet as in Fig. 8 of the paper, with a row for each timestep t.

    A row shows the first image, then it decoded from t, the mixtures, the second image decoded
    from t, and the second image.

    Args:
        model: Name from the catalog, or a folder.
        first: File of the first image.
        second: File of the second image.
        ts: Timesteps to which both are noised before they are mixed.
        between: Mixtures between the two.
        steps: Steps back from t; None is all of them.
        variance: Variance of the way back. None is fixed_small where `steps` leaves timesteps out,
            because fixed_large has too much noise for that; else it is the model's.
        seed: Seed of the noise.
        device: Device to compute on.
        out: File of the sheet.
        label: Name or number of the class of the mixtures, of a network with classes.
        guidance: Weight of classifier-free guidance, of a network with a null class. None or 1 is
            none; any other takes two passes a step.

    Raises:
        Fault: The model, an image, an option or `out` cannot be used.
    """
    _check_out(out)
    with errors_as_faults():
        folder, sha256 = find_model(model)
        described = diffusers_format.describe(folder)
        loaded = diffusers_format.load_described(described, sha256)
        cfg = loaded.net.cfg
        target = device_option(device)
        pair = torch.stack(
            [
                read_picture(path, (cfg.height, cfg.width), cfg.in_channels)
                for path in (first, second)
            ]
        )
        net = _network(folder, loaded, target, label, 1.0 if guidance is None else guidance)
        if variance is None:
            leaves_out = steps and steps <= max(ts)
            variance = _published(described, bool(leaves_out))
        plans = [_plan(loaded, variance, t, steps) for t in ts]
        x_0 = from_bytes(pair.to(target))
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


def _network(
    folder: Path, loaded: Checkpoint, device: torch.device, label: str | None, guidance: float
) -> Network:
    """Put the network on its device, with the class and the guidance of what is drawn.

    Raises:
        Fault: The label is missing or is none of the model's, or guidance does not fit it.
        CatalogError: The card does not say which classes there are.
    """
    if not 0 <= guidance <= _MOST_GUIDANCE:
        raise Fault(f"--guidance {guidance:g} is out of range; give 0 to {_MOST_GUIDANCE}")
    net = loaded.net.to(device)
    if not net.cfg.is_conditional:
        given = ("--label", label) if label is not None else ("--guidance", f"{guidance:g}")
        if label is not None or guidance != 1:
            raise Fault(f"{' '.join(given)} is for a network with classes; leave it out")
        return net
    classes = read_classes(folder, loaded.sha256)
    row = _row(classes, label)
    if guidance != 1 and classes.null is None:
        raise Fault(
            f"--guidance {guidance:g} needs a null class, and the model has none; leave it out, or"
            " name the model's null class with `ddpm models add --null-class`"
        )
    return of_class(net, row, classes.null, guidance)


def _row(classes: ClassesCard, label: str | None) -> int:
    """Return the embedding's row of a class.

    Raises:
        Fault: The label is missing, or is none of the model's.
    """
    names = list(classes.names or ()) or [str(number) for number in range(classes.count)]
    if label in names:
        return classes.row(names.index(label))
    if label is not None and label.isdecimal() and int(label) < classes.count:
        return classes.row(int(label))
    fact = "the model needs a --label" if label is None else f"--label {label} is no class of it"
    raise Fault(f"{fact}; give one of its {classes.count} classes, {listed(names)}")


def _check_out(out: Path) -> None:
    """Check that `out` can be saved before all steps are done, not after them."""
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


def _published(described: Description, leaves_out: bool) -> PublishedVariance:
    """Choose the variance that a model was published with, if it suits the steps."""
    published = described.published.variance
    return "fixed_small" if leaves_out and published == "fixed_large" else published


def _plan(loaded: Checkpoint, variance: PublishedVariance, t: int, steps: int | None) -> Plan:
    """Make the plan from timestep t down, with `steps` of its t + 1 timesteps."""
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
        clip=loaded.process.clipping,
        learned=loaded.process.learned_variance,
    )
