"""The errors of a network on images, timestep by timestep.

`ddpm evaluate` and `ddpm models variance` measure them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cli.device import device_option
from cli.faults import Fault
from cli.settings import CliSettings, read
from cli.stop import StopRequest
from models.checkpoints import diffusers_format
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import (
    SHIPPED,
    Catalog,
    CatalogError,
    ClassesCard,
    read_card,
    read_classes,
)
from models.checkpoints.residual_variance import ResidualVariance
from models.evaluate.likelihood import Evaluation, Terms
from models.networks.memory import is_out_of_memory
from models.train.classes import rows_of
from models.train.data.folder import FolderOptions
from models.train.data.images import BadData, Images, KnownClasses
from models.train.data.source import open_images
from models.train.state import BadState, read_identity


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """Options of a measurement.

    Attributes:
        data: Image folder, IDX file or .npz.
        images: How many of its images are measured, evenly from all.
        batch_size: Images at once; the result is the same.
        seed: Seed of the noise.
        device: Device to compute on, as the user wrote it.
        skip_broken: Whether files that cannot be read are left out.
        without_classes: Whether a network with classes gets its null class for every image.
    """

    data: Path
    images: int
    batch_size: int
    seed: int
    device: str
    skip_broken: bool = False
    without_classes: bool = False


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
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Fault(
            "there is not enough memory for one image of this network; use a larger --device"
        ) from None


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


def _rows(images: Images, classes: ClassesCard | None, options: MeasureOptions) -> Tensor | None:
    """Return the embedding's row of each image, int64 (N,); None for a network without classes.

    Raises:
        Fault: The images are to have no class, and no row means that.
    """
    if classes is None:
        if options.without_classes:
            raise Fault("--no-classes is for a network with classes; leave it out")
        return None
    if images.labels is not None:
        return rows_of(images.labels, classes)
    if classes.null is None:
        raise Fault("--no-classes needs a null class, and the model has none; leave it out")
    return torch.full((len(images),), classes.null)


class Measurement:
    """A network and the images that it is measured on.

    Attributes:
        ended_by: The fault of the picture that ended the measurement early; None without one.
        classes: What class each image gets: `its own`, or `no`. None for a network without classes.
    """

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
            Fault: The model is not known, there are too few images, they have no classes where the
                network has, or the device cannot be used.
            BadCheckpoint: The model cannot be loaded.
            BadData: The data cannot be read.
            CatalogError: A card cannot be used.
        """
        self.folder, sha256 = find_model(model)
        loaded = self.checkpoint = diffusers_format.load(self.folder, sha256)
        cfg = loaded.net.cfg
        classes = None
        if cfg.is_conditional:
            classes = read_classes(self.folder, loaded.sha256)
        how = FolderOptions(
            skip_broken=options.skip_broken,
            labelled=classes is not None and not options.without_classes,
            known=KnownClasses(classes.count, classes.names) if classes else None,
        )
        self.images: Images = open_images(
            options.data, (cfg.height, cfg.width), cfg.in_channels, how
        )
        self.ended_by: str | None = None
        self.classes = None if classes is None else "its own" if self.images.labels else "no"
        if options.images > len(self.images):
            raise Fault(
                f"--images {options.images} is more than the {len(self.images)} "
                f"that {options.data} holds; ask for fewer"
            )
        self._rows = _rows(self.images, classes, options)
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
            loaded.process.clipping,
        )

    def terms(self) -> Terms:
        """Return the terms of the bound, one row an image.

        Ctrl-C drops the batch that is under way, and returns those before it. So does a picture
        that cannot be read.

        Raises:
            Fault: Stopped before the first batch was done.
            BadData: A picture of the first batch cannot be read.
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

                def stepped(size: int) -> None:
                    progress.advance(task, size)
                    if stop():
                        raise _Stopped

                try:
                    chosen = torch.tensor(indices) * len(self.images) // images
                    pixels = self.images.batch(chosen)
                except BadData as error:
                    if not parts:
                        raise
                    self.ended_by = str(error)
                    break
                rows = None if self._rows is None else self._rows[chosen]
                parts.append(self._terms(pixels, indices, rows, stepped))
        if not parts:
            raise Fault(
                "stopped before the first batch was done; "
                "a smaller --batch-size or fewer --steps give an answer sooner"
            )
        return Terms.joined(parts)

    def check_ended(self, terms: Terms) -> None:
        """Raise a Fault if a picture ended the measurement early. What there is has been saved."""
        if self.ended_by:
            raise Fault(f"{self.ended_by}; the figures are of the {len(terms)} images before it")

    def _terms(
        self, pixels: Tensor, indices: range, rows: Tensor | None, stepped: Callable[[int], None]
    ) -> Terms:
        """Measure a batch, in halves where memory does not hold it. The result is the same."""
        size = len(indices)
        seed = self.options.seed
        try:
            return self.evaluation.terms(pixels, seed, indices, lambda: stepped(size), rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        half = size // 2
        first, second = (rows[:half], rows[half:]) if rows is not None else (None, None)
        halves = ((pixels[:half], indices[:half], first), (pixels[half:], indices[half:], second))
        return Terms.joined([self._terms(*part, stepped) for part in halves])

    def warning(self) -> str | None:
        """Say that these are probably the images that the network was trained on, if they are."""
        with suppress(BadState):
            if read_identity(self.folder.parent) == self.images.identity:
                return (
                    "these are the pictures that the network is trained on:"
                    " how likely it finds them says little; give --data others"
                )
        with suppress(CatalogError):
            trained_on = read_card(self.folder).data
            if trained_on.images == len(self.images):
                return (
                    f"the network was trained on as many pictures ({trained_on.name});"
                    " if they are these, the figures say little"
                )
        return None
