"""`ddpm models`: lists the models that can be served, and adds to them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Column, Table

from cli.faults import Fault
from cli.settings import CliSettings, read
from models.checkpoints.added.kept import put_in_place
from models.checkpoints.added.scratch import remove_ownerless, scratch_folder
from models.checkpoints.catalog import (
    CARD,
    SHIPPED,
    Card,
    Catalog,
    CatalogError,
    DataCard,
    ScheduleKind,
    Timesteps,
    read_card,
    sha256_of,
    write_card,
)
from models.diffusion.options import Prediction

if TYPE_CHECKING:
    # imports torch
    from models.checkpoints.diffusers_format import Description
    from models.checkpoints.job_defaults import Asked
    from models.checkpoints.sources.source import Source


def show() -> None:
    """Print a table of the shipped and the added models.

    GFLOP is the cost of one step of one image, in 10^9 floating-point operations.

    Raises:
        Fault: A card cannot be used.
    """
    try:
        catalog = Catalog.read(SHIPPED, read(CliSettings).models_root)
    except CatalogError as error:
        raise Fault(str(error)) from None
    table = Table(
        Column("name", no_wrap=True),
        "shape",
        "T",
        "parameters",
        "GFLOP",
        "default",
        "licence",
        box=box.SIMPLE,
    )
    for card in catalog.values():
        table.add_row(*_row(card, is_default=card.name == catalog.default.name))
    Console().print(table)


def _row(card: Card, is_default: bool) -> tuple[str, ...]:
    return (
        card.name,
        f"{card.shape.channels}x{card.shape.height}x{card.shape.width}",
        str(card.schedule.T),
        f"{card.parameters / 1e6:.2f}M",
        f"{card.gflop_per_image_step:.3g}",
        "yes" if is_default else "",
        card.licence,
    )


@dataclass(frozen=True, slots=True)
class CardOptions:
    """Fields of a card that the command's options give; None where an option is not given."""

    licence: str | None = None
    provenance: str | None = None
    data_name: str | None = None
    data_licence: str | None = None

    def data(self, known: DataCard) -> DataCard:
        """Return the card of the data, from the options and what is known.

        Another data set's licence and number of images are not those of the `known` one.
        """
        if self.data_name is not None:
            return DataCard(name=self.data_name, licence=self.data_licence or "unknown")
        return known.model_copy(update={"licence": self.data_licence or known.licence})


@dataclass(frozen=True, slots=True)
class Statement:
    """What is stated of a model because its files do not say it, or not rightly.

    Attributes:
        schedule: The kind of its schedule.
        timesteps: T.
        prediction: What the network's output estimates.
        size: The image's side, or height x width, such as `28x32`.
        spacing_as_published: Whether jobs visit the timesteps that its publisher chooses.
        clip: The bound of every estimate of the image, or `none`.
        revision: Branch, tag or commit on the Hub.
        flags: Flags of the training, of another trainer's file.
        label_names: The names of the classes: a file of one a line, or `a,b,c`.
        null_class: The row of the embedding of classes that means no class.
    """

    schedule: ScheduleKind | None = None
    timesteps: int | None = None
    prediction: Prediction | None = None
    size: str | None = None
    spacing_as_published: bool = False
    clip: str | None = None
    revision: str | None = None
    flags: str | None = None
    label_names: str | None = None
    null_class: int | None = None

    @property
    def bound(self) -> float | None:
        """The bound that `clip` states, infinity for none.

        Raises:
            Fault: It is none.
        """
        if self.clip is None or self.clip == "none":
            return None if self.clip is None else math.inf
        try:
            bound = float(self.clip)
        except ValueError:
            bound = math.nan
        if not 0 < bound < math.inf:
            raise Fault(f"--clip {self.clip} is no bound; give a number such as 1, or none")
        return bound

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of their labels.

        Raises:
            Fault: The file cannot be read as text.
        """
        if self.label_names is None:
            return None
        if not Path(self.label_names).is_file():
            return tuple(name.strip() for name in self.label_names.split(","))
        try:
            lines = Path(self.label_names).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Fault(
                f"--label-names {self.label_names} cannot be read ({error});"
                " give a text file of one name a line, or a,b,c"
            ) from None
        return tuple(line.strip() for line in lines if line.strip())

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width.

        Raises:
            Fault: The size is none.
        """
        if self.size is None:
            return None
        sides = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", self.size)
        if sides is None:
            raise Fault(f"--size {self.size} is no size; give a side such as 32, or 28x32")
        return int(sides[1]), int(sides[2] or sides[1])


def add(
    thing: str,
    name: str | None,
    options: CardOptions,
    default: bool,
    statement: Statement | None = None,
    asked: Asked | None = None,
    replace: bool = False,
    draw: bool = True,
) -> None:
    """Copy a model into the folder of added models and write its card.

    Nobody sees a model before it is whole: it is copied to a folder next to its place, and the last
    act is a rename. Nothing is left of one that is refused, nor of one whose command was killed:
    the next one removes it.

    Args:
        thing: A folder, a file of a trainer, or `owner/name` on the Hub.
        name: Its name in the catalog. None: that of the folder or the repository.
        options: Fields of its card; what they leave out comes from the folder's own card.
        default: Whether jobs that name no model get this one.
        statement: What the files do not say of the model.
        asked: What jobs are to use by default.
        replace: Whether it may take the place of a model of that name, which is kept for the jobs
            that were accepted before.
        draw: Whether to measure a step of it, and to draw a sheet of samples.

    Raises:
        Fault: The model, its name or a folder cannot be used.
    """
    root = read(CliSettings).models_root
    name = name or _name_of(thing)
    existed = root.exists()
    try:
        remove_ownerless(root)
        if not replace:
            _check_free(root, name)
        before = _replaced_card(root / name)
        default = default or (before is not None and before.default)
        replaced = _defaults(root, besides=name) if default else {}
        root.mkdir(parents=True, exist_ok=True)
        with scratch_folder(root) as scratch:
            report = _add(
                scratch,
                thing,
                name,
                options,
                default,
                statement or Statement(),
                asked,
                replaced,
                replace,
            )
    except OSError as error:
        reason = error.strerror or error
        if error.filename:
            reason = f"{reason}: {error.filename}"
        raise Fault(
            f"{thing} cannot be added to {root} ({reason}); correct that, "
            "or name another folder with DDPM_MODELS_DIR"
        ) from None
    finally:
        if not existed and root.is_dir() and not any(root.iterdir()):
            root.rmdir()
    names = ", ".join(card.name for card in replaced.values())
    instead = f" as the default instead of {names}" if replaced else ""
    _say(f"added {name} to {root}{instead}; running processes take it up within seconds")
    if before is not None:
        _say("jobs that were accepted before keep the weights that were replaced")
    for line in report:
        _say(line)
    if draw:
        _look_at(root / name)


def _look_at(folder: Path) -> None:
    """Say what a step of an added model costs here, and draw it. The model stays whatever comes."""
    from cli.commands.first_look import first_look

    try:
        for line in first_look(read_card(folder), folder, read(CliSettings).cache_root):
            _say(line)
    except KeyboardInterrupt:
        _say("not drawn: interrupted; the model is added all the same")
    # It may be too large for this machine, and run on another.
    except Exception as error:
        _say(f"not drawn: {error}; the model is added all the same")


def _replaced_card(folder: Path) -> Card | None:
    """Return the card of the model that is replaced, if it can be read."""
    try:
        return read_card(folder)
    except CatalogError:
        return None


def _say(line: str) -> None:
    Console().print(line, soft_wrap=True, highlight=False, markup=False)


def _name_of(thing: str) -> str:
    """Make a name of what was given.

    Raises:
        Fault: Nothing is left of it.
    """
    stem = Path(thing).resolve().stem if Path(thing).is_file() else Path(thing).resolve().name
    name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:64]
    if not name:
        raise Fault(f"no name can be made of {thing}; give one with --name")
    return name


def _check_free(root: Path, name: str) -> None:
    if (root / name).exists():
        raise Fault(f"{root / name} exists; choose another --name, or say --replace")


def _add(
    scratch: Path,
    thing: str,
    name: str,
    options: CardOptions,
    default: bool,
    statement: Statement,
    asked: Asked | None,
    replaced: Mapping[Path, Card],
    replace: bool,
) -> list[str]:
    """Open the source, describe it, and install it; return the report."""
    from models.checkpoints.bad_checkpoint import BadCheckpoint
    from models.checkpoints.sources.opening import open_source

    try:
        source = open_source(thing, scratch, statement.revision, statement.flags)
    except BadCheckpoint as error:
        raise Fault(str(error)) from None
    try:
        described = _described(source.folder, statement)
        card, assumed = _card(source, described, name, options, default, statement, asked)
    except BadCheckpoint as error:
        raise Fault(source.in_words(str(error))) from None
    _install(described, scratch, scratch.parent, card, replaced, replace)
    return _report(source, described, card, assumed)


def _report(
    source: Source, described: Description, card: Card, assumed: tuple[str, ...]
) -> list[str]:
    """Say what was found, assumed and ignored."""
    shape = card.shape
    found = [
        f"{source.origin}: {source.in_words(str(described.weights))}",
        f"network of {card.parameters:,} parameters for pictures of"
        f" {shape.channels}x{shape.height}x{shape.width}",
        f"schedule {card.schedule.kind}, T={card.schedule.T}, the network predicts"
        f" {card.prediction}",
        f"a step of one image costs {card.gflop_per_image_step:g} GFLOP",
        *source.notes,
    ]
    found += _classes_in_words(card)
    lines = [_reported(note) for note in found]
    lines += [f"note: {note}" for note in described.notes]
    lines += [f"assumed: {note}" for note in (*assumed, *_left_open(described))]
    if source.ignored:
        lines.append(f"ignored: {', '.join(source.ignored)}")
    return lines


def _reported(note: str) -> str:
    """Begin a line of the report by what kind of note it is."""
    kind = "assumed" if note.startswith("assumed ") else "found"
    return f"{kind}: {note.removeprefix('assumed ')}"


def _classes_in_words(card: Card) -> list[str]:
    """Say what is known of the classes, and what perhaps is."""
    classes = card.classes
    if classes is None:
        return []
    names = "without names"
    if classes.names is not None:
        more = ", ..." if classes.count > _NAMES_SHOWN else ""
        names = f"named {', '.join(classes.names[:_NAMES_SHOWN])}{more}"
    found = [f"{classes.count} classes {names}"]
    if classes.null is not None:
        found.append(f"row {classes.null} means no class, so that jobs may ask for guidance")
    elif classes.names is None:
        found.append(
            "no row is known to mean no class; perhaps the last one does, and --null-class"
            f" {classes.count - 1} says so"
        )
    return found


_NAMES_SHOWN = 5
# What changes the pictures, if a scheduler's file leaves it out.
_STATED_KEYS = ("num_train_timesteps", "beta_schedule", "prediction_type", "clip_sample")


def _left_open(described: Description) -> list[str]:
    """Name what the files leave out, with what was taken instead."""
    process = described.published.process
    taken = {
        "num_train_timesteps": str(described.published.card.T),
        "beta_schedule": described.published.card.kind,
        "prediction_type": process.prediction,
        "clip_sample": str(process.clipping.limits).lower(),
    }
    config = described.published.config
    return [
        f"{key}={taken[key]}, as the scheduler's file leaves it out"
        for key in _STATED_KEYS
        if key not in config
        and not (key == "prediction_type" and "predict_epsilon" in config)
        and not (key == "beta_schedule" and config.get("trained_betas") is not None)
    ]


def _defaults(root: Path, besides: str) -> dict[Path, Card]:
    """Return the cards below `root` that are marked default, by folder, but for one folder's.

    They lose the mark, because the last of several in the alphabet would be the default.
    """
    try:
        cards = {path.parent: read_card(path.parent) for path in sorted(root.glob(f"*/{CARD}"))}
    except CatalogError as error:
        raise Fault(str(error)) from None
    return {
        folder: card for folder, card in cards.items() if card.default and folder.name != besides
    }


def _described(folder: Path, statement: Statement) -> Description:
    """Read the folder's configurations, with what is stated."""
    from models.checkpoints.diffusers_format import describe
    from models.checkpoints.scheduler_config import Stated

    stated = Stated(statement.schedule, statement.timesteps, statement.prediction, statement.bound)
    return describe(folder, stated, statement.sides)


def _card(
    source: Source,
    described: Description,
    name: str,
    options: CardOptions,
    default: bool,
    statement: Statement,
    asked: Asked | None,
) -> tuple[Card, tuple[str, ...]]:
    """Make the card, and say what was assumed.

    Its figures are measured from the files. Its texts and its jobs' defaults come from the options,
    else from the folder's own card.
    """
    from models.checkpoints.card import StatedClasses, make_card
    from models.checkpoints.job_defaults import Asked, choose_defaults

    try:
        own = _own_card(described)
        published = described.published
        spacing = Timesteps()
        if statement.spacing_as_published:
            spacing = Timesteps(spacing=published.spacing, offset=published.offset)
        known_data = own.data if own else DataCard(name="unknown", licence="unknown")
        known_licence = own.licence if own else source.licence or "unknown"
        known_provenance = own.provenance if own else source.provenance
        defaults, assumed = choose_defaults(
            published, spacing, asked or Asked(), own.defaults if own else None
        )
        known = own.classes if own else None
        stated = StatedClasses(
            statement.names or (known.names if known else None),
            known.null if known and statement.null_class is None else statement.null_class,
        )
        card = make_card(
            described.folder,
            name,
            data=options.data(known_data),
            licence=options.licence or known_licence,
            provenance=options.provenance or known_provenance,
            defaults=defaults,
            default=default,
            timesteps=spacing,
            described=described,
            classes=stated,
        )
        published.process.plan(
            defaults.steps, defaults.sampler, variance=defaults.variance, eta=defaults.eta
        )
        return card, assumed
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            reason = f"{first['loc'][0]}={first['input']!r} cannot stand in a card: {reason}"
        raise Fault(reason) from None
    except ValueError as error:
        raise Fault(f"jobs of {name} could not run by default: {error}") from None


def _own_card(described: Description) -> Card | None:
    """Return the card that `ddpm train` wrote into the folder, if it is of these very weights."""
    folder = described.folder
    if not (folder / CARD).exists():
        return None
    try:
        card = read_card(folder)
    except CatalogError as error:
        typer.echo(f"not taken: {error}", err=True)
        return None
    if card.sha256 != sha256_of(described.weights):
        typer.echo(f"not taken: {folder / CARD} is of other weights", err=True)
        return None
    return card


def _install(
    described: Description,
    scratch: Path,
    root: Path,
    card: Card,
    replaced: Mapping[Path, Card],
    replace: bool,
) -> None:
    """Copy the model to its place below `root`, with `card`.

    The cards in `replaced`, by their folders, lose their mark of the default.
    """
    from models.checkpoints.diffusers_format import copy

    whole = scratch / card.name
    copy(described, whole)
    write_card(whole, card)
    # another process may have been faster
    if not replace:
        _check_free(root, card.name)
    for other, marked in replaced.items():
        write_card(other, marked.model_copy(update={"default": False}))
    put_in_place(whole, root / card.name)
