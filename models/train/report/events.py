"""The readings and sheets of a training run as TensorBoard events."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from models.train.output import written
from models.train.trainer import Trainer

FOLDER = "tensorboard"
_FILES = "events.out.tfevents.*"
# tags of the two losses
LOSS, VALIDATION_LOSS = "loss", "validation_loss"


class Events:
    """The event file of a run, which goes on where the saved state does.

    A run that is resumed may have written readings after its last save. TensorBoard is told to
    drop these, as they are made again.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Open a new file in <out>/tensorboard/.

        Events of a run that began anew in the folder are removed. Readings that no file has,
        because the run had no events before, are written.

        Raises:
            BadOutput: It cannot be written.
        """
        # It takes seconds to import, and few runs need it.
        from torch.utils.tensorboard.writer import SummaryWriter

        counters = trainer.counters
        self._counters = counters
        self._folder = trainer.out / FOLDER
        with written(self._folder):
            before = list(self._folder.glob(_FILES))
            if counters.update == 0:
                for path in before:
                    path.unlink()
            resumes = bool(before and counters.update)
            self._writer = SummaryWriter(self._folder, purge_step=counters.update + 1)
        self._losses = len(counters.losses) if resumes else 0
        self._validation = len(counters.validation) if resumes else 0
        self.write_readings()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is left."""
        with written(self._folder):
            self._writer.close()

    def write_readings(self) -> None:
        """Write the readings that are new.

        Raises:
            BadOutput: They cannot be written.
        """
        counters = self._counters
        with written(self._folder):
            for update, loss in counters.losses[self._losses :]:
                self._writer.add_scalar(LOSS, loss, update)
            for update, loss in counters.validation[self._validation :]:
                self._writer.add_scalar(VALIDATION_LOSS, loss, update)
            self._writer.flush()
        self._losses = len(counters.losses)
        self._validation = len(counters.validation)

    def write_sheet(self, path: Path) -> None:
        """Write a sheet of samples, from its PNG.

        Raises:
            BadOutput: It cannot be written.
        """
        with Image.open(path) as image:
            pixels = np.asarray(image)
        layout = "HW" if pixels.ndim == 2 else "HWC"
        with written(self._folder):
            self._writer.add_image("samples", pixels, self._counters.update, dataformats=layout)
            self._writer.flush()
