"""`ddpm evaluate`: how likely a network finds pictures that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli.faults import Fault
from cli.settings import CliSettings, read
from cli.train import StopRequest, choose_device
from models import checkpoint
from models.catalog import SHIPPED, Catalog, CatalogError
from models.checkpoint import BadCheckpoint, Checkpoint
from models.evaluate.likelihood import Evaluation, Likelihood, Terms
from models.evaluate.report import write
from models.plans import PlanVariance
from models.train.data import BadData, Images, open_images

VARIANCES: tuple[PlanVariance, ...] = ("fixed_large", "fixed_small", "analytic")


class _Stopped(Exception):
    pass


def evaluate(
    model: str, data: Path, images: int, steps: int | None, batch_size: int, seed: int, device: str, out: Path | None
) -> None:
    """Ctrl-C leaves the batch that is under way, and reports on those before it."""
    if find_spec("matplotlib") is None:
        raise Fault("matplotlib is not installed and draws the curves; install the extra: pip install 'ddpm-service[train]'")
    try:
        loaded = _load(model)
        pictures = open_images(data, loaded.net.cfg.sample_size, loaded.net.cfg.in_channels)
        if images > len(pictures):
            raise Fault(f"--images {images} is more than the {len(pictures)} that {data} holds; ask for as many or fewer")
        where = choose_device(device)
        evaluation = Evaluation(loaded.net.to(where), loaded.schedule, loaded.prediction, steps or loaded.schedule.T, where)
        folder = _folder(out or Path("runs/evaluate") / f"{Path(model).resolve().name}-{len(evaluation.tau)}-steps")
        terms = _terms(evaluation, pictures, images, batch_size, seed)
    except (BadCheckpoint, BadData, CatalogError, FloatingPointError, ValueError) as error:
        raise Fault(str(error)) from None
    found = {variance: evaluation.likelihood(terms, variance) for variance in VARIANCES}
    _show(found, len(terms), len(evaluation.tau), folder)
    about = {
        "model": model,
        "weights": loaded.sha256,
        "data": str(data),
        "images": len(terms),
        "steps": len(evaluation.tau),
        "seed": seed,
    }
    best = min(VARIANCES, key=lambda variance: found[variance].bits)
    try:
        write(folder, about, found, evaluation.coding(terms, best))
    except OSError as error:
        raise Fault(f"{folder} cannot be written to ({error.strerror}); the figures are above") from None


def _folder(path: Path) -> Path:
    """Before hours of work, not after them."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(f"the folder {path} cannot be made ({error.strerror}); name another with --out") from None
    return path


def _load(model: str) -> Checkpoint:
    """By its name, or from its folder."""
    if Path(model).is_dir():
        return checkpoint.load(Path(model))
    catalog = Catalog.read(SHIPPED, read(CliSettings).models_root)
    if model not in catalog:
        raise Fault(f"{model} is neither a folder nor one of the models {', '.join(sorted(catalog))}; name one of these")
    return checkpoint.load(catalog.folder(model), catalog[model].sha256)


def _terms(evaluation: Evaluation, pictures: Images, images: int, batch_size: int, seed: int) -> Terms:
    parts: list[Terms] = []
    stop = StopRequest()
    columns = TextColumn("image-steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress, suppress(_Stopped):
        task = progress.add_task("", total=images * len(evaluation.tau))
        batches = math.ceil(images / batch_size)
        for batch in range(batches):
            indices = range(batch, images, batches)  # from everywhere: a folder may be sorted, and this may be the last batch

            def stepped(size: int = len(indices)) -> None:
                progress.advance(task, size)
                if stop():
                    raise _Stopped

            pixels = pictures.batch(torch.tensor(indices) * len(pictures) // images)
            parts.append(evaluation.terms(pixels, seed, indices, stepped))
    if not parts:
        raise Fault("stopped before the first batch was done; a smaller --batch-size or fewer --steps give an answer sooner")
    return Terms.joined(parts)


def _show(found: Mapping[PlanVariance, Likelihood], images: int, steps: int, folder: Path) -> None:
    table = Table("variance", "bits/dim", "rate", "distortion", box=box.SIMPLE)
    for name, likelihood in found.items():
        error = f" ± {likelihood.standard_error:.3f}" if likelihood.standard_error is not None else ""
        table.add_row(name, f"{likelihood.bits:.3f}{error}", f"{likelihood.rate:.3f}", f"{likelihood.distortion:.3f}")
    console = Console()
    console.print(table)
    console.print(f"of {images} images in {steps} steps; the analytic variance is fitted to them. More in {folder}")
