"""`ddpm evaluate`: how likely a network finds images that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cli.commands.measure import Measurement, MeasureOptions, errors_as_faults
from cli.faults import Fault
from models.checkpoints.residual_variance import ResidualVariance
from models.diffusion.options import Variance
from models.evaluate.likelihood import Likelihood
from models.evaluate.report import check_replaces, write

VARIANCES: tuple[Variance, ...] = ("fixed_large", "fixed_small", "analytic")


def evaluate(model: str, options: MeasureOptions, steps: int | None, out: Path | None) -> None:
    """Print the likelihood under each variance, in bits/dim, and write the figures and curves.

    Ctrl-C drops the batch that is under way, and reports on those before it. A picture that
    cannot be read does too, and is then a fault.

    Args:
        model: Name from the catalog, or a folder.
        options: Images, batch size, seed and device.
        steps: Timesteps to visit; None is all that the model was trained with.
        out: Folder for the figures; None is runs/evaluate/<model>-<steps>-steps.

    Raises:
        Fault: The model, the data, an option or the folder cannot be used, or matplotlib is
            missing.
    """
    if find_spec("matplotlib") is None:
        raise Fault(
            "matplotlib is not installed and draws the curves; "
            "install it: `make extra EXTRA=train` in the repository"
        )
    with errors_as_faults():
        measurement = Measurement(model, options, steps)
        evaluation = measurement.evaluation
        visited = len(evaluation.tau)
        default_out = Path("runs/evaluate") / f"{Path(model).resolve().name}-{visited}-steps"
        folder = _make_folder(out or default_out)
        analytic = _origin_of_analytic(measurement.residual_variance)
        about = {
            "model": model,
            "weights": measurement.checkpoint.sha256,
            "data": str(options.data),
            "images": options.images,
            "steps": visited,
            "seed": options.seed,
            "classes": measurement.classes,
            "analytic": analytic,
        }
        check_replaces(folder, about)
        if warning := measurement.warning():
            Console(stderr=True).print(f"ddpm: {warning}", soft_wrap=True, highlight=False)
        terms = measurement.terms()
    likelihoods = {variance: evaluation.likelihood(terms, variance) for variance in VARIANCES}
    _show(likelihoods)
    Console().print(
        f"of {len(terms)} images in {visited} steps{_with(measurement.classes)}; "
        f"the analytic variance is {analytic}. "
        f"More in {folder}",
        soft_wrap=True,
        highlight=False,
    )
    best = min(VARIANCES, key=lambda variance: likelihoods[variance].bits)
    try:
        write(folder, about | {"images": len(terms)}, likelihoods, evaluation.coding(terms, best))
    except OSError as error:
        raise Fault(
            f"{folder} cannot be written to ({error.strerror}); the figures are above"
        ) from None
    measurement.check_ended(terms)


def _with(classes: str | None) -> str:
    return "" if classes is None else f", each with {classes} class"


def _origin_of_analytic(residual: ResidualVariance | None) -> str:
    if residual is None:
        return "fitted to these images"
    return f"estimated on {residual.images} images of {residual.data}"


def _make_folder(path: Path) -> Path:
    """Make the folder before hours of work, so that it cannot fail after them."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Fault(
            f"the folder {path} cannot be made ({error.strerror}); name another with --out"
        ) from None
    return path


def _show(likelihoods: Mapping[Variance, Likelihood]) -> None:
    table = Table("variance", "bits/dim", "rate", "distortion", box=box.SIMPLE)
    for name, likelihood in likelihoods.items():
        bits = f"{likelihood.bits:.3f}"
        if likelihood.standard_error is not None:
            bits += f" ± {likelihood.standard_error:.3f}"
        table.add_row(name, bits, f"{likelihood.rate:.3f}", f"{likelihood.distortion:.3f}")
    Console().print(table)
