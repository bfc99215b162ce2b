"""What `ddpm evaluate` and `ddpm models variance` have in common: a network's errors on pictures, timestep by timestep."""

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
class Measure:
    """Of `images` pictures of `data`, evenly from all."""

    data: Path
    images: int
    batch_size: int
    seed: int
    device: str


class _Stopped(Exception):
    pass


@contextmanager
def faults_told() -> Iterator[None]:
    """What models, data and options may be at fault for, as a line for the terminal."""
    try:
        yield
    except (BadCheckpoint, BadData, CatalogError, FloatingPointError, ValueError) as error:
        raise Fault(str(error)) from None


def find(model: str) -> tuple[Path, str | None]:
    """A model's folder, by its name or as it is; and the sha256 of its weights, where a card vouches for it."""
    if Path(model).is_dir():
        return Path(model), None
    catalog = Catalog.read(SHIPPED, read(CliSettings).models_root)
    if model not in catalog:
        raise Fault(
            f"{model} is neither a folder nor one of the models {', '.join(sorted(catalog))}; name one of these"
        )
    return catalog.folder(model), catalog[model].sha256


class Measured:
    """A network, ready to be looked at on pictures that fit it."""

    def __init__(
        self, model: str, wanted: Measure, steps: int | None = None, *, anew: bool = False
    ) -> None:
        """`steps`: timesteps that are visited; None: all. `anew`: the residual variance that may be there is not looked at."""
        self.folder, sha256 = find(model)
        loaded = self.checkpoint = diffusers_format.load(self.folder, sha256)
        cfg = loaded.net.cfg
        self.pictures: Images = open_images(wanted.data, cfg.sample_size, cfg.in_channels)
        if wanted.images > len(self.pictures):
            raise Fault(
                f"--images {wanted.images} is more than the {len(self.pictures)} that {wanted.data} holds; ask for fewer"
            )
        self.wanted, self.device = wanted, device_option(wanted.device)
        self.residual_variance = (
            None if anew else ResidualVariance.find(self.folder, loaded.sha256, loaded.schedule.T)
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
        """Ctrl-C leaves the batch that is under way, and returns those before it."""
        parts: list[Terms] = []
        images, steps = self.wanted.images, len(self.evaluation.tau)
        columns = (
            TextColumn("image-steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with StopRequest() as stop, Progress(*columns) as progress, suppress(_Stopped):
            task = progress.add_task("", total=images * steps)
            batches = math.ceil(images / self.wanted.batch_size)
            for batch in range(batches):
                indices = range(
                    batch, images, batches
                )  # from everywhere: a folder may be sorted, and this may be the last

                def stepped(size: int = len(indices)) -> None:
                    progress.advance(task, size)
                    if stop():
                        raise _Stopped

                pixels = self.pictures.batch(torch.tensor(indices) * len(self.pictures) // images)
                parts.append(self.evaluation.terms(pixels, self.wanted.seed, indices, stepped))
        if not parts:
            raise Fault(
                "stopped before the first batch was done; a smaller --batch-size or fewer --steps give an answer sooner"
            )
        return Terms.joined(parts)
