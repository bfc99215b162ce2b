"""A repository on the Hub: only the files that are needed, each compared with size and hash.

`huggingface_hub` reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `HF_HOME`, as everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.catalog import sha256_of
from models.checkpoints.layout import CONFIG, INDEX, SCHEDULER
from models.checkpoints.sources.files import read_index
from models.checkpoints.sources.folders import NETWORKS, open_folder, weights_among
from models.checkpoints.sources.source import Source

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Of all files together. The largest DDPM that is published has 3 GB.
_MOST_BYTES = 64 << 30
_CONFIGS = (INDEX, f"scheduler/{SCHEDULER}", SCHEDULER)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a revision of a repository.

    Attributes:
        name: `owner/name`.
        commit: The commit.
        files: What the server says of each file, by path.
        licence: What its page states.
    """

    name: str
    commit: str
    files: Mapping[str, RepoSibling]
    licence: str | None


def open_repository(name: str, scratch: Path, revision: str | None = None) -> Source:
    """Fetch a model, and make it ready.

    Args:
        name: `owner/name`.
        scratch: An empty folder.
        revision: A branch, tag or commit. None: `main`.

    Raises:
        BadCheckpoint: It is not there or not for us, the server cannot be reached, or what it sent
            is not what it announced.
        OSError: A file cannot be written.
    """
    from huggingface_hub import constants, snapshot_download

    with _faults(name, revision):
        if constants.is_offline_mode():
            cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
            return open_folder(
                cached, scratch, f"{name} in the cache", f"{name} at {cached.name[:12]}"
            )
        found = _find(name, revision)
        folder = scratch / "hub"
        _fetch_all(found, folder)
    provenance = f"{constants.ENDPOINT}/{name} at {found.commit[:12]}"
    source = open_folder(folder, scratch, f"{name} at {found.commit[:12]}", provenance)
    left = sorted(path for path in found.files if not (folder / path).is_file())
    return replace(
        source,
        licence=found.licence,
        ignored=(*source.ignored, *left),
        shown={**source.shown, str(folder): name},
    )


def _find(name: str, revision: str | None) -> Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    licence = info.card_data.get("license") if info.card_data else None
    files = {file.rfilename: file for file in info.siblings or []}
    if not info.sha:
        raise BadCheckpoint(f"{name}: the server names no commit")
    return Listing(name, info.sha, files, licence if isinstance(licence, str) else None)


def _fetch_all(found: Listing, folder: Path) -> None:
    """Fetch the configurations and the weights, and nothing else."""
    configs = [path for path in _CONFIGS if path in found.files]
    base = next((b for b in NETWORKS if str(PurePosixPath(b, CONFIG)) in found.files), None)
    if base is None:
        raise BadCheckpoint(
            f"{found.name} holds no unet/{CONFIG} and no {CONFIG}, so that it is no model of"
            f" diffusers; it holds {', '.join(sorted(found.files)[:8]) or 'nothing'}"
        )
    at = PurePosixPath(base)
    beside = [PurePosixPath(path) for path in found.files]
    weights = weights_among(path.name for path in beside if path.parent == at)
    if not weights:
        raise BadCheckpoint(f"{found.name}: {at} holds no weights")
    wanted = [*configs, str(at / CONFIG), str(at / weights[0].name)]
    for path in wanted:
        _fetch(found, path, folder)
    if weights[0].is_index:
        for shard in sorted(set(read_index(folder / wanted[-1]).values())):
            _fetch(found, str(at / shard), folder)


def _fetch(found: Listing, path: str, folder: Path) -> None:
    """Fetch a file, and compare it with what was announced.

    Raises:
        BadCheckpoint: It has another size or hash.
    """
    from huggingface_hub import hf_hub_download

    announced = found.files.get(path)
    if announced is None:
        raise BadCheckpoint(f"{found.name} lacks {path}, which its index names")
    size_bytes = announced.size
    if size_bytes is None or not 0 < size_bytes <= _MOST_BYTES:
        raise BadCheckpoint(f"{found.name}: {path} is announced with {size_bytes} bytes; refused")
    hf_hub_download(
        found.name,
        path,
        revision=found.commit,
        local_dir=folder,
        tqdm_class=_bounded_bar(f"{found.name}: {path}", size_bytes),
    )
    fetched = folder / path
    if fetched.stat().st_size != size_bytes:
        raise BadCheckpoint(
            f"{found.name}: {path} was announced with {size_bytes} bytes, and has"
            f" {fetched.stat().st_size}; it is refused"
        )
    asked, has = _hashes(announced, fetched)
    if asked != has:
        raise BadCheckpoint(
            f"{found.name}: {path} was announced with the hash {asked}, and has {has};"
            " it is refused"
        )


def _hashes(announced: RepoSibling, path: Path) -> tuple[str, str]:
    """Return the announced hash of a file, and the one that it has."""
    if announced.lfs is not None:
        return announced.lfs.sha256, sha256_of(path)
    content = path.read_bytes()
    # git's name of a file
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False)
    return announced.blob_id or "none", blob.hexdigest()


def _bounded_bar(what: str, size_bytes: int) -> type[Any]:
    """Make a progress bar that ends a download of more bytes than were announced."""
    from huggingface_hub.utils.tqdm import tqdm

    class BoundedBar(tqdm):
        """Shows the progress, and counts the bytes even where nothing is shown."""

        received = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += n or 0
            if self.received > size_bytes:
                raise BadCheckpoint(
                    f"{what} was announced with {size_bytes} bytes, and the server sends more;"
                    " it is refused"
                )
            return bool(super().update(n))

    return BoundedBar


@contextmanager
def _faults(name: str, revision: str | None) -> Iterator[None]:
    """Turn the library's errors into one line each."""
    from huggingface_hub import errors

    # of httpx or of httpx2, whichever the library uses
    http_error = cast(
        "type[Exception]",
        next(c for c in errors.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"),
    )
    at = f"{name} at {revision}" if revision else name
    try:
        yield
    except errors.GatedRepoError:
        raise BadCheckpoint(
            f"{at} is gated; accept its terms on its page, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise BadCheckpoint(
            f"{at} is neither a folder here nor on the Hub; correct the name, or set HF_TOKEN"
            " if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise BadCheckpoint(f"{name} has no revision {revision}; correct --revision") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise BadCheckpoint(
            f"{at} is not in the cache and the Hub is not asked or not reached; check the network"
            " and HF_HUB_OFFLINE"
        ) from None
    except errors.HFValidationError as error:
        raise BadCheckpoint(f"{name} is no name of the Hub: {error}") from None
    except (http_error, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = str(error).strip().splitlines()
        raise BadCheckpoint(
            f"{at} cannot be fetched ({first[0] if first else type(error).__name__})"
        ) from None
