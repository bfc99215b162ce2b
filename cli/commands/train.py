"""`ddpm train`: runs the trainer, shows where it stands, saves what it has."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.commands.measure import errors_as_faults, find_model
from cli.device import device_option
from cli.faults import Fault
from cli.lock import AlreadyLocked, take
from cli.stop import StopRequest
from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import ClassesCard
from models.networks.memory import is_out_of_memory
from models.train import export
from models.train.data.folder import FolderOptions
from models.train.data.images import BadData, Images, KnownClasses
from models.train.data.look import Look, look_at
from models.train.data.source import open_images
from models.train.output import BadOutput, check_output, make_output
from models.train.recipe import BadRecipe, TrainingRecipe
from models.train.recipe_keys import template
from models.train.report import curves
from models.train.report.events import Events
from models.train.report.samples import draw_samples
from models.train.start import Pretrained, StartingRecipe
from models.train.state import BadState, read_classes, read_names
from models.train.trainer import Diverged, Trainer, TrainingProgress

_LINE_EVERY_S = 30.0
_RECIPE = "recipe.toml"
# Updates that a dry run takes and drops: the first is slower than all others.
_TRIED_UPDATES = 3


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of a run that do not belong to its recipe.

    Attributes:
        device: Device to train on, as the user wrote it.
        updates: Replaces the recipe's number of updates; None does not.
        skip_broken: Whether files that cannot be read are left out.
        decode_all: Whether every file is decoded before training.
        compiled: Whether `torch.compile` is used on CUDA.
        dry: Whether all is checked and tried, and nothing is written.
        begin_from: Model to fine-tune, by name or folder; None begins with random weights.
        classes: Whether a new recipe learns the classes of the data.
    """

    device: str = "auto"
    updates: int | None = None
    skip_broken: bool = False
    decode_all: bool = False
    compiled: bool = True
    dry: bool = False
    begin_from: str | None = None
    classes: bool = False

    def pretrained(self) -> Pretrained | None:
        """Load the model that is fine-tuned. Raises Fault."""
        if self.begin_from is None:
            return None
        with errors_as_faults():
            try:
                return Pretrained.load(find_model(self.begin_from)[0])
            except BadRecipe as error:
                raise Fault(str(error)) from None


def new_recipe(path: Path, data: Path | None, options: TrainOptions) -> None:
    """Write a recipe with every key explained, fitted to the data where it is named.

    Args:
        path: The file, which may not exist.
        data: Image folder, IDX file or .npz.
        options: Its updates, and the model that is fine-tuned.

    Raises:
        Fault: The file exists or cannot be written, or the data cannot be used.
    """
    where = data or Path("images")
    start = StartingRecipe(where, options.updates, options.classes, options.pretrained())
    console = Console(highlight=False, soft_wrap=True)
    try:
        text = template(start.values(look_at(data) if data else Look(60, 64, 3, is_fixed=False)))
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise Fault(f"{path} exists; name another file with --new, or remove it") from None
    except OSError as error:
        raise Fault(f"{path} cannot be written ({error.strerror}); name another file") from None
    except BadData as error:
        raise Fault(str(error)) from None
    console.print(f"wrote {path}; train with: ddpm train {path} --out runs/{path.stem}")


def train_on(data: Path, out: Path | None, options: TrainOptions) -> None:
    """Train on data without a recipe: one is chosen, and kept in the run's folder.

    Args:
        data: Image folder, IDX file or .npz.
        out: Folder of the run; None is runs/ and the name of the data.
        options: Those of the run.

    Raises:
        Fault: The data or the folder cannot be used, or what `train` raises.
    """
    start = StartingRecipe(data, options.updates, options.classes, options.pretrained())
    folder = out or Path("runs") / start.name
    path = folder / _RECIPE
    command = f"ddpm train --data {data}" + (f" --out {out}" if out else "")
    try:
        if path.exists():
            found = TrainingRecipe.read(path).data.path
            if found.resolve() != data.resolve():
                raise Fault(
                    f"{folder} has a run on {found}, not on {data}; name another folder with --out"
                )
            train(path, folder, options, command)
            return
        values = start.values(look_at(data))
        check_output(folder, values["card.name"], data)
        if options.dry:
            with TemporaryDirectory() as temporary:
                path = Path(temporary) / _RECIPE
                path.write_text(template(values), encoding="utf-8")
                train(path, folder, options, command)
            return
        make_output(folder)
        path.write_text(template(values), encoding="utf-8")
    except (BadRecipe, BadData, BadOutput) as error:
        raise Fault(str(error)) from None
    except (OSError, UnicodeEncodeError) as error:
        raise Fault(f"{path} cannot be written ({error}); name another --out") from None
    train(path, folder, options, command)


def train(
    recipe_path: Path, out: Path, options: TrainOptions | None = None, command: str | None = None
) -> None:
    """Train until the recipe's last update, Ctrl-C or SIGTERM, and save whatever is done.

    Args:
        recipe_path: TOML file with the configuration of the run.
        out: Folder for the state, the images and the finished model.
        options: Those that are not in the recipe.
        command: The command that resumes the run; None is the one with the recipe's path.

    Raises:
        Fault: The recipe, the data, the state or a folder cannot be used; matplotlib is missing;
            there is not enough memory; or the training diverged.
    """
    # Otherwise it would be missed at the first save.
    _check_installed("matplotlib", "draws the loss curve", "train")
    options = options or TrainOptions()
    console = Console(highlight=False, soft_wrap=True)
    recipe = None
    try:
        recipe = _with_updates(TrainingRecipe.read(recipe_path), options.updates)
        check_output(out, recipe.card.name, recipe.data.path)
        if recipe.training.tensorboard:
            _check_installed("tensorboard", "is what training.tensorboard asks for", "tensorboard")
        if options.dry:
            _try(recipe, out, options, console)
            return
        make_output(out)
        with lock_output(out):
            trainer = _make_trainer(recipe, out, out, options, console)
            _run(trainer, console)
    except (BadRecipe, BadOutput, BadData, BadState, BadCheckpoint, Diverged) as error:
        raise Fault(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        if recipe is None or not is_out_of_memory(error):
            raise
        raise Fault(
            f"there is not enough memory for training.batch_size={recipe.training.batch_size}"
            f" ({str(error).partition('. ')[0].splitlines()[0] if str(error) else 'host'});"
            " lower it in the recipe or narrow network.block_out_channels,"
            " and begin anew in another --out"
        ) from None
    done = trainer.counters.update
    updates = recipe.training.updates
    if done < updates:
        console.print(f"stopped at update {done} of {updates}, saved in {out}")
        console.print(f"resume with: {command or f'ddpm train {recipe_path} --out {out}'}")


def _check_installed(package: str, purpose: str, extra: str) -> None:
    if find_spec(package) is None:
        raise Fault(
            f"{package} is not installed and {purpose};"
            f" install it: `make extra EXTRA={extra}` in the repository"
        )


def _with_updates(recipe: TrainingRecipe, updates: int | None) -> TrainingRecipe:
    if updates is None:
        return recipe
    training = recipe.training.model_copy(update={"updates": updates})
    return recipe.model_copy(update={"training": training})


def _make_trainer(
    recipe: TrainingRecipe, out: Path, run: Path, options: TrainOptions, console: Console
) -> Trainer:
    """Open the images, and begin or resume the run.

    Args:
        recipe: What to train.
        out: Where the trainer writes.
        run: The folder that has the names of the images, if the run has begun.
        options: Those of the run.
        console: Where is printed what was found.
    """
    device = device_option(options.device)
    pretrained = options.pretrained()
    classes = read_classes(run) or (pretrained.classes if pretrained else None)
    images = _open(recipe, run, options, classes)
    for line in images.survey.lines():
        console.print(line)
    trainer = Trainer(recipe, images, out, device, compiled=options.compiled, pretrained=pretrained)
    if trainer.classes:
        console.print(_in_words(trainer.classes, recipe.label_dropout))
    count = trainer.counters.threads
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    measured = " (the faster at the start)" if recipe.training.precision == "auto" else ""
    begun = f"resumed at update {trainer.counters.update}" if trainer.counters.update else "begun"
    console.print(f"{begun} on {device} in {trainer.counters.precision}{measured}{threads}")
    return trainer


def _in_words(classes: ClassesCard, dropout: float) -> str:
    if classes.null is None:
        return f"{classes.count} classes, and no null class: guidance needs label_dropout"
    return f"{classes.count} classes, and a null class from {dropout:.0%} of the images"


def _open(
    recipe: TrainingRecipe, run: Path, options: TrainOptions, classes: ClassesCard | None
) -> Images:
    folder = FolderOptions(
        read_names(run),
        options.skip_broken,
        options.decode_all,
        recipe.data.classes,
        KnownClasses(classes.count, classes.names) if classes else None,
    )
    network = recipe.network
    size = (network.height, network.width)
    return open_images(recipe.data.path, size, network.in_channels, folder)


def _try(recipe: TrainingRecipe, run: Path, options: TrainOptions, console: Console) -> None:
    """Check all that a run needs, take a few updates and drop them."""
    with TemporaryDirectory() as temporary:
        trainer = _make_trainer(recipe, Path(temporary), run, options, console)
        for n in range(_TRIED_UPDATES):
            began_s = perf_counter()
            float(trainer.update(n))
            seconds = perf_counter() - began_s
    training = recipe.training
    images = len(trainer.images)
    passes = training.updates * training.batch_size / images
    shape = "x".join(map(str, recipe.network.shape))
    console.print(
        f"{trainer.net.parameter_count() / 1e6:.2f}M parameters,"
        f" images of {shape}; {training.updates} updates"
        f" of {training.batch_size} are {passes:.1f} passes over {images} images,"
        f" with a warm-up of {trainer.warmup_updates}"
    )
    left = timedelta(seconds=round(seconds * training.updates))
    console.print(f"an update took {seconds:.2f} s, so all take about {left}; nothing was written")


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
    with Events(trainer) if options.tensorboard else nullcontext() as events:
        actions = (
            Every(options.save_every_s, lambda: _save(trainer, events)),
            Every(options.sample_every_s, lambda: _draw(trainer, console, events)),
        )
        with StopRequest() as stop:
            with _Bar(trainer, console) if console.is_terminal else _Lines(console) as display:
                for progress in trainer.run(stop):
                    display.show(progress, time_left(progress, options.batch_size))
                    if events:
                        events.write_readings()
                    # After a stop all is saved below, and nobody waits for a sheet.
                    if not stop():
                        for action in actions:
                            action.run_if_due()
            if trainer.counters.losses:
                _save(trainer, events)
        if trainer.counters.update == options.updates:
            _draw(trainer, console, events)
            folder = trainer.out / trainer.recipe.card.name
            console.print(f"finished: the model is in {folder}")
            console.print(f"serve it with: ddpm models add {shlex.quote(str(folder))}")


def _save(trainer: Trainer, events: Events | None) -> None:
    try:
        trainer.validate()
        # A reading that is in the saved state is not written again.
        if events:
            events.write_readings()
    finally:
        trainer.save_state()
    export.export(trainer)
    curves.draw_loss(trainer)
    curves.write_losses(trainer)


def _draw(trainer: Trainer, console: Console, events: Events | None) -> None:
    """Draw a sheet of samples. A run whose sheet does not fit the memory goes on without it."""
    try:
        sheet = draw_samples(trainer)
        if events:
            events.write_sheet(sheet)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        console.print("no sheet of samples: there is not enough memory for one image")


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
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._task = self.add_task(
            trainer.recipe.card.name,
            total=trainer.recipe.training.updates,
            completed=trainer.counters.update,
            numbers="",
        )

    def show(self, progress: TrainingProgress, left: timedelta) -> None:
        self.update(self._task, completed=progress.update, numbers=_numbers(progress, left))


class _Lines:
    """Lines for a log: one at once, then one every half a minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = -math.inf

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, progress: TrainingProgress, left: timedelta) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LINE_EVERY_S
        done = f"update {progress.update}/{progress.updates}"
        self._console.print(f"{done}  {_numbers(progress, left)}")


def _numbers(progress: TrainingProgress, left: timedelta) -> str:
    return f"loss {progress.loss:.4f}  {progress.images_per_s:.0f} images/s  {left} left"
