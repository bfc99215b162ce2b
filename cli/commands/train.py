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
from models.train.trainer import Diverged, Trainer
from models.train.trainer import TrainingProgress as Reading

_LINE_EVERY_S = 30.0


def train(recipe_path: Path, out: Path, device: str) -> None:
    """Until the recipe's last update, Ctrl-C or SIGTERM; whatever is done is saved."""
    if find_spec("matplotlib") is None:  # else it would be missed at the first save
        raise Fault(
            "matplotlib is not installed and draws the loss curve; install it: pip install '.[train]' in the repository"
        )
    console = Console(highlight=False, soft_wrap=True)
    try:
        recipe = TrainingRecipe.read(recipe_path)
        check_output(out, recipe.card.name, recipe.data.path)
        make_output(out)
        with held(out):
            images = open_images(
                recipe.data.path, recipe.network.sample_size, recipe.network.in_channels
            )
            trainer = Trainer(recipe, images, out, device_option(device))
            _run(trainer, console)
    except (BadRecipe, BadOutput, BadData, BadState, BadCheckpoint, Diverged) as error:
        raise Fault(str(error)) from None
    if trainer.counters.update < recipe.training.updates:
        console.print(
            f"stopped at update {trainer.counters.update} of {recipe.training.updates}, saved in {out}"
        )
        console.print(f"resume with: ddpm train {recipe_path} --out {out}")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """One run at a time: two would write each other's state."""
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
    jobs = (
        Every(options.save_every_s, lambda: _save(trainer)),
        Every(options.sample_every_s, lambda: report.draw_samples(trainer)),
    )
    with StopRequest() as stop:
        with _Bar(trainer, console) if console.is_terminal else _Lines(console) as display:
            for reading in trainer.run(stop):
                display.show(reading, time_left(reading, options.batch_size))
                for job in (
                    () if stop() else jobs
                ):  # after a stop all is saved below, and nobody waits for a sheet
                    job.perhaps()
        if trainer.counters.losses:
            _save(trainer)
    if trainer.counters.update == options.updates:
        report.draw_samples(trainer)
        console.print(f"finished: the model is in {trainer.out / trainer.recipe.card.name}")


def _save(trainer: Trainer) -> None:
    trainer.save_state()
    export.export(trainer)
    report.draw_loss(trainer)


def time_left(reading: Reading, batch_size: int) -> timedelta:
    images = (reading.updates - reading.update) * batch_size
    return timedelta(seconds=round(images / reading.images_per_s))


@dataclass(slots=True)
class Every:
    """An action that `perhaps` runs, at most once in `interval_s`."""

    interval_s: float
    action: Callable[[], object]
    _last: float = field(default_factory=time.monotonic)

    def perhaps(self) -> None:
        if time.monotonic() - self._last >= self.interval_s:
            self.action()
            self._last = time.monotonic()


class _Bar(Progress):
    """For a terminal."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        numbers = TextColumn(
            "loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} images/s  {task.fields[left]} left"
        )
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            numbers,
            console=console,
        )
        total, done = trainer.recipe.training.updates, trainer.counters.update
        self._task = self.add_task(
            trainer.recipe.card.name,
            total=total,
            completed=done,
            loss=math.nan,
            rate=math.nan,
            left="?",
        )

    def show(self, reading: Reading, left: timedelta) -> None:
        self.update(
            self._task,
            completed=reading.update,
            loss=reading.loss,
            rate=reading.images_per_s,
            left=left,
        )


class _Lines:
    """For a log: the first reading, then one line every half a minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._next = console, 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, reading: Reading, left: timedelta) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_EVERY_S
        speed = f"{reading.images_per_s:.0f} images/s  {left} left"
        self._console.print(
            f"update {reading.update}/{reading.updates}  loss {reading.loss:.4f}  {speed}"
        )
