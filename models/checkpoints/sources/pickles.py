"""Pickles of weights (`.bin`, `.pt`, `.pth`, `.ckpt`), read by a child process without network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.sources.files import check_content

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_TIMEOUT_S = 600
# torch stores tensors as they are, so that its archives grow by nothing but the directory
_GROWTH = 1.5
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_NO_MEMORY = re.compile(r"not enough memory|can't allocate|cannot allocate|bad_alloc", re.I)


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle held.

    Attributes:
        place: The keys that led to the weights, with points between. Empty: the file is they.
        beside: Keys that were left out.
    """

    place: str
    beside: tuple[str, ...]


def to_safetensors(path: Path, out: Path) -> Unpickled:
    """Convert a pickle of weights in a child process, in which nothing that it names is run.

    Args:
        path: The pickle.
        out: The safetensors file to write.

    Raises:
        BadCheckpoint: It holds something other than weights, or takes too much memory or time.
    """
    check_content(path)
    _check_archive(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-I", "-B", "-m", f"{__package__}.pickle_child", str(path.resolve())]
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        child = subprocess.run(
            [*command, str(out.resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env={**environment, "OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BadCheckpoint(
            f"{path} took more than {_TIMEOUT_S} s to read; it is refused"
        ) from None
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        raise BadCheckpoint(
            f"{path} ended the process that read it (exit status {child.returncode}),"
            " by its bounds on memory or time, or since it is damaged; it is refused"
        ) from None
    if "place" not in answer:
        raise BadCheckpoint(f"{path}: {_reason(answer)}")
    return Unpickled(answer["place"], tuple(answer["beside"]))


def _reason(answer: dict[str, str]) -> str:
    if "refused" in answer:
        return answer["refused"]
    fault = answer.get("fault", "")
    if "memory" in answer or _NO_MEMORY.search(fault):
        return "reading it takes far more memory than the file has bytes; it is refused"
    if named := _GLOBAL.search(fault):
        return (
            f"the pickle names {named[1]}, which weights have no need of, and nothing of it was"
            " run; save the state_dict alone"
        )
    return f"it is no file of weights that torch reads safely ({fault[:200].splitlines()[0]})"


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to far more than it has.

    Raises:
        BadCheckpoint: It does.
    """
    if not zipfile.is_zipfile(path):
        return
    size_bytes = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BadCheckpoint(f"{path} is a damaged archive ({error}); download it again") from None
    if unpacked > _GROWTH * size_bytes + 65536:
        raise BadCheckpoint(
            f"{path} has {size_bytes} bytes and unpacks to {unpacked}; torch packs nothing,"
            " so that it is none of its files"
        )
