"""`ddpm train`: runs the trainer, shows where it stands, saves what it has."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.device import device_option
from cli.faults import Fault
from cli.lock import AlreadyLocked, take
from cli.stop import StopRequest
from models.checkpoints.diffusers_format import BadCheckpoint
from models.train import export, report
from models.train.data import BadData, open_images
from models.train.output import BadOutput, check_output, make_output
from models.train.recipe import BadRecipe, TrainingRecipe
from models.train.state import BadState
from models.train.trainer import Diverged, Trainer, TrainingProgress

_LINE_EVERY_S = 30.0


def train(recipe_path: Path, out: Path, device: str) -> None:
    """Train until the recipe's last update, Ctrl-C or SIGTERM, and save whatever is done.

    Args:
        recipe_path: TOML file with the configuration of the run.
        out: Folder for the state, the images and the finished model.
        device: Device to train on.

    Raises:
        Fault: The recipe, the data, the state or a folder cannot be used; matplotlib is missing;
            or the training diverged.
    """
    # Otherwise it would be missed at the first save.
    if find_spec("matplotlib") is None:
        raise Fault(
            "matplotlib is not installed and draws the loss curve; "
            "install it: pip install '.[train]' in the repository"
        )
    console = Console(highlight=False, soft_wrap=True)
    try:
        recipe = TrainingRecipe.read(recipe_path)
        check_output(out, recipe.card.name, recipe.data.path)
        make_output(out)
        with lock_output(out):
            images = open_images(
                recipe.data.path, recipe.network.sample_size, recipe.network.in_channels
            )
            trainer = Trainer(recipe, images, out, device_option(device))
            _run(trainer, console)
    except (BadRecipe, BadOutput, BadData, BadState, BadCheckpoint, Diverged) as error:
        raise Fault(str(error)) from None
    done = trainer.counters.update
    updates = recipe.training.updates
    if done < updates:
        console.print(f"stopped at update {done} of {updates}, saved in {out}")
        console.print(f"resume with: ddpm train {recipe_path} --out {out}")


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Keep other runs away from `out` while the block runs: two would write each other's state.

    Raises:
        Fault: Another run uses the folder, or it cannot be locked.
    """
    try:
        fd = take(out / ".lock")
    except AlreadyLocked as pid:
        raise Fault(
            f"{out} is in use by another `ddpm train` (pid {pid}); stop it, or name another --out"
        ) from None
    except OSError as error:
        raise Fault(
            f"{out} cannot be locked ({error.strerror}); name another folder with --out"
        ) from None
    try:
        yield
    finally:
        os.close(fd)


def _run(trainer: Trainer, console: Console) -> None:
    options = trainer.recipe.training
    actions = (
        Every(options.save_every_s, lambda: _save(trainer)),
        Every(options.sample_every_s, lambda: report.draw_samples(trainer)),
    )
    with StopRequest() as stop:
        with _Bar(trainer, console) if console.is_terminal else _Lines(console) as display:
            for progress in trainer.run(stop):
                display.show(progress, time_left(progress, options.batch_size))
                # After a stop all is saved below, and nobody waits for a sheet.
                if not stop():
                    for action in actions:
                        action.run_if_due()
        if trainer.counters.losses:
            _save(trainer)
    if trainer.counters.update == options.updates:
        report.draw_samples(trainer)
        console.print(f"finished: the model is in {trainer.out / trainer.recipe.card.name}")


def _save(trainer: Trainer) -> None:
    trainer.save_state()
    export.export(trainer)
    report.draw_loss(trainer)


def time_left(progress: TrainingProgress, batch_size: int) -> timedelta:
    """Estimate the time to the last update from the current rate."""
    images = (progress.updates - progress.update) * batch_size
    return timedelta(seconds=round(images / progress.images_per_s))


@dataclass(slots=True)
class Every:
    """An action that `run_if_due` runs, at most once in `interval_s` seconds."""

    interval_s: float
    action: Callable[[], object]
    _last: float = field(default_factory=time.monotonic)

    def run_if_due(self) -> None:
        """Run the action if the interval has passed since its last run ended."""
        if time.monotonic() - self._last >= self.interval_s:
            self.action()
            self._last = time.monotonic()


class _Bar(Progress):
    """A progress bar, for a terminal."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        numbers = TextColumn(
            "loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} images/s  "
            "{task.fields[left]} left"
        )
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            numbers,
            console=console,
        )
        self._task = self.add_task(
            trainer.recipe.card.name,
            total=trainer.recipe.training.updates,
            completed=trainer.counters.update,
            loss=math.nan,
            rate=math.nan,
            left="?",
        )

    def show(self, progress: TrainingProgress, left: timedelta) -> None:
        self.update(
            self._task,
            completed=progress.update,
            loss=progress.loss,
            rate=progress.images_per_s,
            left=left,
        )


class _Lines:
    """Lines for a log: one at once, then one every half a minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, progress: TrainingProgress, left: timedelta) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_EVERY_S
        done = f"update {progress.update}/{progress.updates}  loss {progress.loss:.4f}"
        self._console.print(f"{done}  {progress.images_per_s:.0f} images/s  {left} left")
