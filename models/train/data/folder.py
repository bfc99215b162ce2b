"""A folder of image files: found by their content, checked before the first is needed."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.train.data.images import BadData, KnownClasses, Labels, Size, Survey, listed
from models.train.data.labels import of_folders
from models.train.data.picture import (
    UNREADABLE,
    NoPicture,
    check_header,
    decode,
    formats,
    read_picture,
)

# Up to so many bytes, all of each file is decoded before training: that takes seconds.
DECODED_BYTES = 64 * 2**20
_NO_FOLDERS = {"__MACOSX"}
REMEDY_BEFORE = (
    "put an 8-bit PNG or JPEG in its place, under the same name,"
    " or go on without it by --skip-broken"
)
REMEDY_AT_ITS_TURN = (
    "put an 8-bit PNG or JPEG in its place, under the same name, and run the same command again,"
    " or go on without it by --skip-broken"
)


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """How a folder is read.

    Attributes:
        began_with: Names that a run which goes on began with. None: all that are found.
        skip_broken: Leave out files that cannot be read, and those that are gone.
        decode_all: Decode every file before training, however large they are together.
        labelled: Take the folders as classes.
        known: Classes that the images must be of. None: all that are found.
    """

    began_with: Sequence[str] | None = None
    skip_broken: bool = False
    decode_all: bool = False
    labelled: bool = False
    known: KnownClasses | None = None


class FolderImages:
    """Image files below a folder, decoded when they are asked for."""

    def __init__(
        self, folder: Path, size: Size, channels: int, options: FolderOptions | None = None
    ) -> None:
        """Find and check the files. Images are centre-cropped and resized.

        Args:
            folder: Where they are, in any folders below it.
            size: Pixels a side, or height and width.
            channels: 1 for grey, 2 for grey with alpha, 3 for RGB, 4 for RGBA.
            options: How it is read.

        Raises:
            BadData: There are none; some cannot be read, or are gone, and none may be skipped; or
                they have no classes, and are to have some.
        """
        self.folder = folder
        self.size = size
        self.channels = channels
        self._readers = ThreadPoolExecutor(thread_name_prefix="decode")
        self._options = options or FolderOptions()
        self._left_out: dict[str, list[str]] = defaultdict(list)
        self.names = self._choose(sorted_names(folder, self._left_out))
        if not self.names:
            raise BadData(f"{folder} holds no image files; give PNG, JPEG or WebP files below it")
        self.labels: Labels | None = None
        if self._options.labelled:
            self.labels = of_folders(folder, self.names, self._options.known)
        classes = Counter(name.rpartition("/")[0].partition("/")[0] for name in self.names)
        self.survey = Survey(
            len(self.names),
            {} if set(classes) == {""} else {name or "(top)": n for name, n in classes.items()},
            dict(self._left_out),
            self._decoded,
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identity(self) -> str:
        """A hash of the names: reading every file would take as long as an epoch."""
        return _identity(self.names)

    def goes_on_from(self, identity: str) -> bool:
        """Tell whether they are the same names, or what is left of them by the user's choice."""
        if identity == self.identity:
            return True
        began_with = self._options.began_with
        if began_with is None or not self._options.skip_broken:
            return False
        return identity == _identity(began_with)

    def batch(self, indices: Tensor) -> Tensor:
        """Decode the images of the indices, (B,): uint8 (B, C, H, W).

        Raises:
            BadData: An image cannot be read.
        """
        return torch.stack(list(self._readers.map(self._read, indices.tolist())))

    def _read(self, index: int) -> Tensor:
        path = self.folder / self.names[index]
        return read_picture(path, self.size, self.channels, REMEDY_AT_ITS_TURN)

    def _choose(self, found: list[str]) -> list[str]:
        """Keep what is a picture and belongs to the run.

        Raises:
            BadData: Some cannot be read, or are gone, and none may be skipped.
        """
        formats()
        checked = dict(zip(found, self._readers.map(self._header, found), strict=True))
        sizes = {name: size for name, size in checked.items() if size is not None}
        if others := [name for name, size in checked.items() if size is None]:
            self._left_out["no picture"] = others
        broken = {name: size for name, size in sizes.items() if isinstance(size, str)}
        names = list(sizes)
        if self._options.began_with is not None:
            names = list(self._options.began_with)
            of_the_run = set(names)
            if new := [name for name in sizes if name not in of_the_run | broken.keys()]:
                self._left_out["new since the run began"] = new
            broken = {name: fault for name, fault in broken.items() if name in of_the_run}
            broken |= {name: "it is gone" for name in names if name not in sizes}
        whole = [name for name in names if name not in broken]
        together = sum(size for size in map(sizes.get, whole) if isinstance(size, int))
        thorough = self._options.decode_all or self._options.skip_broken
        self._decoded = thorough or together <= DECODED_BYTES
        if self._decoded:
            faults = self._readers.map(self._fault, whole)
            broken |= {name: fault for name, fault in zip(whole, faults, strict=True) if fault}
        if broken and not self._options.skip_broken:
            raise BadData(self._refusal(broken))
        if broken:
            self._left_out["unreadable"] = [f"{n} ({fault})" for n, fault in broken.items()]
        return [name for name in whole if name not in broken]

    def _header(self, name: str) -> int | str | None:
        """Return the file's size, or what is wrong with it, or None where it is no picture."""
        try:
            return check_header(self.folder / name)
        except NoPicture:
            return None
        except BadData as error:
            return str(error)

    def _fault(self, name: str) -> str | None:
        """Decode a file, and return what is wrong with it."""
        try:
            decode(self.folder / name, self.size, self.channels)
        except UNREADABLE as error:
            return str(error) or type(error).__name__
        return None

    def _refusal(self, broken: dict[str, str]) -> str:
        (first, fault), *others = broken.items()
        more = f", nor can {listed([name for name, _ in others])}" if others else ""
        return f"{self.folder / first} cannot be read as an image ({fault}){more}; {REMEDY_BEFORE}"


def find_pictures(folder: Path) -> list[str]:
    """List the files below a folder that are pictures by content or by name, broken ones too."""
    formats()
    return [name for name in sorted_names(folder, defaultdict(list)) if _is_picture(folder / name)]


def _is_picture(path: Path) -> bool:
    try:
        check_header(path)
    except NoPicture:
        return False
    except BadData:
        return True
    return True


def sorted_names(folder: Path, left_out: dict[str, list[str]]) -> list[str]:
    """List all files below a folder that are not hidden, in the order of their names' parts.

    Args:
        folder: Where they are.
        left_out: Takes what is left out, by the reason.

    Raises:
        BadData: The folder cannot be read.
    """
    found = _walk(folder, "", {os.path.realpath(folder)}, left_out)
    return sorted(found, key=lambda name: name.split("/"))


def _identity(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def _walk(
    folder: Path, prefix: str, seen: set[str], left_out: dict[str, list[str]]
) -> Iterator[str]:
    """Yield the names of all files below a folder, through links, each folder once."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if not prefix:
            raise BadData(f"{folder} cannot be read ({error.strerror}); name another") from None
        left_out[f"a folder that cannot be read ({error.strerror})"].append(prefix.rstrip("/"))
        return
    for entry in entries:
        name = prefix + entry.name
        if entry.name.startswith(".") or entry.name in _NO_FOLDERS:
            left_out["hidden"].append(name)
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in seen:
                left_out["a folder that is taken already"].append(name)
                continue
            seen.add(real)
            yield from _walk(Path(entry.path), f"{name}/", seen, left_out)
        elif entry.is_file():
            yield name
        else:
            reason = "a link that leads nowhere" if entry.is_symlink() else "not a file"
            left_out[reason].append(name)
