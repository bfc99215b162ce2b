"""`ddpm evaluate`: how likely a network finds pictures that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cli.commands.measure import Measure, Measured, faults_told
from cli.faults import Fault
from models.diffusion.options import Variance
from models.evaluate.likelihood import Likelihood
from models.evaluate.report import check_replaces, write

VARIANCES: tuple[Variance, ...] = ("fixed_large", "fixed_small", "analytic")


def evaluate(model: str, wanted: Measure, steps: int | None, out: Path | None) -> None:
    """Ctrl-C leaves the batch that is under way, and reports on those before it."""
    if find_spec("matplotlib") is None:
        raise Fault(
            "matplotlib is not installed and draws the curves; install it: pip install '.[train]' in the repository"
        )
    with faults_told():
        measured = Measured(model, wanted, steps)
        evaluation, unknown = measured.evaluation, measured.residual_variance
        visited = len(evaluation.tau)
        folder = _folder(
            out or Path("runs/evaluate") / f"{Path(model).resolve().name}-{visited}-steps"
        )
        fitted = (
            f"estimated on {unknown.images} images of {unknown.data}"
            if unknown
            else "fitted to these images"
        )
        about = {
            "model": model,
            "weights": measured.checkpoint.sha256,
            "data": str(wanted.data),
            "images": wanted.images,
            "steps": visited,
            "seed": wanted.seed,
            "analytic": fitted,
        }
        check_replaces(folder, about)
        terms = measured.terms()
    found = {variance: evaluation.likelihood(terms, variance) for variance in VARIANCES}
    _show(found)
    said = f"of {len(terms)} images in {visited} steps; the analytic variance is {fitted}. More in {folder}"
    Console().print(said, soft_wrap=True, highlight=False)
    best = min(VARIANCES, key=lambda variance: found[variance].bits)
    try:
        write(folder, about | {"images": len(terms)}, found, evaluation.coding(terms, best))
    except OSError as error:
        raise Fault(
            f"{folder} cannot be written to ({error.strerror}); the figures are above"
        ) from None


def _folder(path: Path) -> Path:
    """Before hours of work, not after them."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(
            f"the folder {path} cannot be made ({error.strerror}); name another with --out"
        ) from None
    return path


def _show(found: Mapping[Variance, Likelihood]) -> None:
    table = Table("variance", "bits/dim", "rate", "distortion", box=box.SIMPLE)
    for name, likelihood in found.items():
        error = (
            f" ± {likelihood.standard_error:.3f}" if likelihood.standard_error is not None else ""
        )
        table.add_row(
            name,
            f"{likelihood.bits:.3f}{error}",
            f"{likelihood.rate:.3f}",
            f"{likelihood.distortion:.3f}",
        )
    Console().print(table)
