"""The errors of a network on images, timestep by timestep.

`ddpm evaluate` and `ddpm models variance` measure them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.device import device_option
from cli.faults import Fault
from cli.settings import CliSettings, read
from cli.stop import StopRequest
from models.checkpoints import diffusers_format
from models.checkpoints.catalog import SHIPPED, Catalog, CatalogError
from models.checkpoints.diffusers_format import BadCheckpoint
from models.checkpoints.residual_variance import ResidualVariance
from models.evaluate.likelihood import Evaluation, Terms
from models.train.data import BadData, Images, open_images


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """Options of a measurement.

    Attributes:
        data: Image folder, IDX file or .npz.
        images: How many of its images are measured, evenly from all.
        batch_size: Images at once; the result is the same.
        seed: Seed of the noise.
        device: Device to compute on, as the user wrote it.
    """

    data: Path
    images: int
    batch_size: int
    seed: int
    device: str


class _Stopped(Exception):
    """The user asked to stop in the middle of a batch."""


@contextmanager
def errors_as_faults() -> Iterator[None]:
    """Turn the errors of models, data and options into Faults.

    Raises:
        Fault: The block raised such an error; the text is the same.
    """
    try:
        yield
    except (BadCheckpoint, BadData, CatalogError, FloatingPointError, ValueError) as error:
        raise Fault(str(error)) from None


def find_model(model: str) -> tuple[Path, str | None]:
    """Return the folder of a model, which is given by name or as a folder.

    Returns:
        The folder, and the sha256 of its weights from its card. A folder that the user named has
        none.

    Raises:
        Fault: It is neither a folder nor a known name.
        CatalogError: A card cannot be used.
    """
    if Path(model).is_dir():
        return Path(model), None
    catalog = Catalog.read(SHIPPED, read(CliSettings).models_root)
    if model not in catalog:
        raise Fault(
            f"{model} is neither a folder nor one of the models {', '.join(sorted(catalog))}; "
            "name one of these"
        )
    return catalog.folder(model), catalog[model].sha256


class Measurement:
    """A network and the images that it is measured on."""

    def __init__(
        self,
        model: str,
        options: MeasureOptions,
        steps: int | None = None,
        *,
        use_residual_variance: bool = True,
    ) -> None:
        """Load the model and open the images.

        Args:
            model: Name from the catalog, or a folder.
            options: Images, batch size, seed and device.
            steps: Timesteps to visit; None is all.
            use_residual_variance: Whether to use the estimate in the folder, if there is one.

        Raises:
            Fault: The model is not known, there are too few images, or the device cannot be used.
            BadCheckpoint: The model cannot be loaded.
            BadData: The data cannot be read.
            CatalogError: A card cannot be used.
        """
        self.folder, sha256 = find_model(model)
        loaded = self.checkpoint = diffusers_format.load(self.folder, sha256)
        cfg = loaded.net.cfg
        self.images: Images = open_images(options.data, cfg.sample_size, cfg.in_channels)
        if options.images > len(self.images):
            raise Fault(
                f"--images {options.images} is more than the {len(self.images)} "
                f"that {options.data} holds; ask for fewer"
            )
        self.options = options
        self.device = device_option(options.device)
        self.residual_variance = (
            ResidualVariance.find(self.folder, loaded.sha256, loaded.schedule.T)
            if use_residual_variance
            else None
        )
        self.evaluation = Evaluation(
            loaded.net.to(self.device),
            loaded.schedule,
            loaded.prediction,
            steps or loaded.schedule.T,
            self.device,
            self.residual_variance.tensor if self.residual_variance else None,
        )

    def terms(self) -> Terms:
        """Return the terms of the bound, one row an image.

        Ctrl-C drops the batch that is under way, and returns those before it.

        Raises:
            Fault: Stopped before the first batch was done.
            FloatingPointError: The network's output is not finite.
        """
        parts: list[Terms] = []
        images = self.options.images
        steps = len(self.evaluation.tau)
        columns = (
            TextColumn("image-steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with StopRequest() as stop, Progress(*columns) as progress, suppress(_Stopped):
            task = progress.add_task("", total=images * steps)
            batches = math.ceil(images / self.options.batch_size)
            for batch in range(batches):
                # A batch takes its images from all over the data, because a folder may be sorted
                # and the user may stop after this batch.
                indices = range(batch, images, batches)

                def stepped(size: int = len(indices)) -> None:
                    progress.advance(task, size)
                    if stop():
                        raise _Stopped

                pixels = self.images.batch(torch.tensor(indices) * len(self.images) // images)
                parts.append(self.evaluation.terms(pixels, self.options.seed, indices, stepped))
        if not parts:
            raise Fault(
                "stopped before the first batch was done; "
                "a smaller --batch-size or fewer --steps give an answer sooner"
            )
        return Terms.joined(parts)
