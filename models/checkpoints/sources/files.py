"""Checks of files before anything reads them: links, pointers of Git LFS, headers that lie."""

from __future__ import annotations

import json
from pathlib import Path

from models.checkpoints.bad_checkpoint import BadCheckpoint

_POINTER = b"version https://git-lfs.github.com/spec/"
# far beyond any network's: a tensor takes about 100 bytes of it
_LARGEST_HEADER = 50_000_000
_LARGEST_JSON = 20_000_000


def boundary_of(folder: Path) -> Path:
    """Find the folder that no link may leave.

    It is the folder itself. A snapshot in the Hub's cache links to the `blobs` of its repository,
    so that there it is the repository's folder.
    """
    resolved = folder.resolve()
    for above in (resolved, *resolved.parents):
        if above.parent.name == "snapshots" and (above.parent.parent / "blobs").is_dir():
            return above.parent.parent
    return resolved


def check_inside(path: Path, boundary: Path) -> None:
    """Refuse a file that a link takes from outside the model's folder.

    Raises:
        BadCheckpoint: It lies elsewhere, or the link leads to nothing.
    """
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a loop of links"
        raise BadCheckpoint(f"{path} cannot be read ({reason}); restore the file") from None
    if not target.is_relative_to(boundary):
        raise BadCheckpoint(
            f"{path} is a link to {target}, outside the model's folder;"
            " put the file itself there if it is the model's"
        )
    if not target.is_file():
        raise BadCheckpoint(f"{path} is no regular file")


def check_content(path: Path) -> None:
    """Refuse a pointer of Git LFS, an empty file, and JSON that is far too large.

    Raises:
        BadCheckpoint: It is one.
    """
    size_bytes = path.stat().st_size
    if not size_bytes:
        raise BadCheckpoint(f"{path} is empty; download it again")
    with path.open("rb") as file:
        begin = file.read(len(_POINTER))
    if begin == _POINTER:
        raise BadCheckpoint(
            f"{path} is a pointer of Git LFS, not the file that it points to;"
            " run `git lfs pull` there"
        )
    if path.suffix == ".json" and size_bytes > _LARGEST_JSON:
        raise BadCheckpoint(f"{path} has {size_bytes} bytes; no model's configuration is so large")


def check_safetensors(path: Path) -> None:
    """Compare the header of a safetensors file with the file's size.

    Raises:
        BadCheckpoint: It claims more bytes than there are, or than a header may have.
    """
    check_content(path)
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(9)
    claimed = int.from_bytes(begin[:8], "little")
    if len(begin) < 9 or begin[8:] != b"{":
        raise BadCheckpoint(f"{path} is not a safetensors file; download or save it again")
    if claimed > size_bytes - 8:
        raise BadCheckpoint(
            f"{path}: its header claims {claimed} bytes, and the file has {size_bytes};"
            " download it again"
        )
    if claimed > _LARGEST_HEADER:
        raise BadCheckpoint(f"{path}: its header claims {claimed} bytes; no network's is so large")


def read_index(path: Path) -> dict[str, str]:
    """Read which shard holds each tensor, from `*.index.json`.

    Returns:
        File names by tensor names.

    Raises:
        BadCheckpoint: It is damaged, or names files elsewhere.
    """
    check_content(path)
    try:
        shards = json.loads(path.read_text())["weight_map"]
        names = {str(name): shards[name] for name in shards}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadCheckpoint(f"{path} holds no weight_map; download it again") from None
    for shard in names.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard.startswith("."):
            raise BadCheckpoint(f"{path}: weight_map names {shard!r}, which is no file beside it")
    return names
