"""A folder in any of diffusers' layouts, whose files are put together where they need to be."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.layout import (
    CONFIG,
    INDEX,
    SCHEDULER,
    WEIGHTS,
    check_pipeline,
    scheduler_file,
)
from models.checkpoints.sources import pickles, tensors
from models.checkpoints.sources.files import boundary_of, check_content, check_inside, read_index
from models.checkpoints.sources.source import Source

NETWORKS = ("unet_ema", "unet", "")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# from the best to the least: full precision, averaged, then halves
_VARIANTS = ("", "ema", "fp32", "bf16", "fp16", "non_ema")
_RUN = re.compile(r"checkpoint-\d+")
_KINDS = ("safetensors", "bin")
_NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<before>[\w-]+))??\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<after>[\w-]+))?\.json)?"
)
# Left out without a word: they belong to no model's weights.
_OF_A_PIPELINE = frozenset({CONFIG, INDEX, SCHEDULER, "card.json", "residual_variance.json"})


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights, or the index of its shards, by what its name says."""

    name: str
    stem: str
    variant: str
    kind: str
    is_index: bool

    @property
    def rank(self) -> tuple[int, ...]:
        """Where it stands among others, the least first."""
        known = self.variant in _VARIANTS
        return (
            _KINDS.index(self.kind),
            _VARIANTS.index(self.variant) if known else len(_VARIANTS),
            _STEMS.index(self.stem),
            self.is_index,
        )


def weights_among(names: Iterable[str]) -> list[WeightsFile]:
    """Find files of weights among names, the one to take first.

    Shards themselves are not among them, since their index is.
    """
    found = []
    for name in names:
        if (match := _NAME.fullmatch(name)) and not re.search(r"-\d{5}-of-\d{5}", name):
            variant = match["before"] or match["after"] or ""
            is_index = match["index"] is not None
            found.append(WeightsFile(name, match["stem"], variant, match["kind"], is_index))
    return sorted(found, key=lambda file: file.rank)


def open_folder(
    folder: Path, scratch: Path, origin: str | None = None, provenance: str | None = None
) -> Source:
    """Make a folder ready: as it is where `describe` reads it, else put together anew.

    Args:
        folder: The folder, in any layout.
        scratch: An empty folder for files that are put together.
        origin: What people call it. None: its path.
        provenance: How the weights came to be. None: they were imported from the folder.

    Raises:
        BadCheckpoint: Its weights cannot be used, or a link leads out of it.
        OSError: A file cannot be read.
    """
    origin = origin or str(folder)
    provenance = provenance or f"imported from {folder.resolve().name}"
    folder = _snapshot_of(folder)
    boundary = boundary_of(folder)
    for path in (folder / INDEX, folder / "card.json", folder / "residual_variance.json"):
        if path.exists() or path.is_symlink():
            check_inside(path, boundary)
            check_content(path)
    check_pipeline(folder)
    base = _network_of(folder)
    if base is None:
        raise BadCheckpoint(
            f"{folder} holds no unet/{CONFIG} and no {CONFIG};"
            " give a folder in diffusers' UNet2DModel format, a .pt of a trainer, or owner/name"
        )
    check_inside(base / CONFIG, boundary)
    check_content(base / CONFIG)
    notes: list[str] = []
    scheduler = _scheduler_of(folder, notes)
    if scheduler is not None:
        check_inside(scheduler, scheduler.parent if notes else boundary)
        check_content(scheduler)
    found = weights_among(path.name for path in base.iterdir())
    if not found:
        raise BadCheckpoint(f"{base} holds no {WEIGHTS}, nor any other file of weights")
    chosen, others = found[0], found[1:]
    ignored = [file.name for file in others] + _others(folder, base)
    if chosen.name != WEIGHTS:
        notes.append(f"the weights are {chosen.name}")
    if base.name == "unet_ema" and (folder / "unet").is_dir():
        ignored.append("unet/")
    ready = _as_it_is(folder, base, chosen, boundary, scheduler)
    if ready:
        return Source(folder, origin, provenance, tuple(notes), tuple(ignored))
    made = scratch / "put-together"
    weights = made / "unet" / WEIGHTS
    collected = _collect(base, chosen, boundary, scratch, notes)
    left, gone = tensors.without_prefixes(collected)
    if gone:
        notes.append(f"before the names of the weights, {', '.join(gone)} was taken off")
    tensors.write({name: collected[given] for given, name in left.items()}, weights)
    shutil.copyfile(base / CONFIG, made / "unet" / CONFIG)
    if (folder / INDEX).is_file():
        # it may name the classes
        shutil.copyfile(folder / INDEX, made / INDEX)
    if scheduler is not None:
        (made / "scheduler").mkdir()
        shutil.copyfile(scheduler, made / "scheduler" / SCHEDULER)
    shown = {
        str(weights): str(base / chosen.name),
        str(made / "unet"): str(base),
        str(made / "scheduler" / SCHEDULER): str(scheduler),
        str(made): str(folder),
    }
    return Source(made, origin, provenance, tuple(notes), tuple(ignored), shown=shown)


def _snapshot_of(folder: Path) -> Path:
    """Find the snapshot in a repository's folder of the Hub's cache, or return the folder."""
    if not (folder / "snapshots").is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text().strip()
        if named.is_dir() and named.parent == folder / "snapshots":
            return named
    snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    if len(snapshots) == 1:
        return snapshots[0]
    names = ", ".join(path.name for path in snapshots) or "none"
    raise BadCheckpoint(
        f"{folder / 'snapshots'} holds several revisions ({names}); give one of them"
    )


def _network_of(folder: Path) -> Path | None:
    for base in (folder / name for name in NETWORKS):
        if (base / CONFIG).is_file() or (base / CONFIG).is_symlink():
            return base
    return None


def _scheduler_of(folder: Path, notes: list[str]) -> Path | None:
    """Find the process: in the folder, or in that of the run whose checkpoint it is."""
    found = scheduler_file(folder)
    above = folder.resolve().parent / "scheduler" / SCHEDULER
    if found is None and _RUN.fullmatch(folder.resolve().name) and above.is_file():
        notes.append(f"the process is taken from the run's {above}")
        return above
    return found


def _as_it_is(
    folder: Path, base: Path, chosen: WeightsFile, boundary: Path, scheduler: Path | None
) -> bool:
    """Tell whether `describe` reads the folder without any change."""
    if chosen.name != WEIGHTS:
        return False
    check_inside(base / WEIGHTS, boundary)
    _, gone = tensors.without_prefixes(tensors.tensor_names(base / WEIGHTS))
    return not gone and scheduler == scheduler_file(folder)


def _collect(
    base: Path, chosen: WeightsFile, boundary: Path, scratch: Path, notes: list[str]
) -> dict[str, Tensor]:
    """Read the weights: one file or shards, safetensors or pickles."""
    path = base / chosen.name
    check_inside(path, boundary)
    wanted: dict[Path, list[str] | None] = {path: None}
    if chosen.is_index:
        wanted = {}
        for name, shard in read_index(path).items():
            of_shard = wanted.setdefault(base / shard, [])
            assert of_shard is not None
            of_shard.append(name)
        notes.append(f"the weights are merged from {len(wanted)} shards")
    files: dict[Path, list[str] | None] = {}
    for number, (file, names) in enumerate(wanted.items()):
        check_inside(file, boundary)
        if chosen.kind == "bin":
            converted = scratch / "converted" / f"{number}.safetensors"
            held = pickles.to_safetensors(file, converted)
            notes.extend(notes_of(file.name, held))
            files[converted] = names
        else:
            files[file] = names
    return tensors.merge(files)


def notes_of(name: str, held: pickles.Unpickled) -> list[str]:
    """Say what became of a pickle, a sentence each."""
    notes = [f"the pickle {name} was converted to safetensors in a process without network"]
    if held.place:
        notes.append(f"in {name} the weights are {held.place}")
    if held.beside:
        shown = ", ".join(held.beside[:8]) + (", ..." if len(held.beside) > 8 else "")
        notes.append(f"left out of {name}: {shown}")
    return notes


def _others(folder: Path, base: Path) -> list[str]:
    """List what else lies in the folder."""
    used = {base.relative_to(folder).parts[:1], ("scheduler",)}
    return sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if path.name not in _OF_A_PIPELINE
        and (path.name,) not in used
        and path.name != "unet"
        and not path.name.startswith(".")
        and not _NAME.fullmatch(path.name)
    )
