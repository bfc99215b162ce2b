"""The code of the commit before this one, for a rolling upgrade."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

from tests.chaos.actors import ROOT

_COMPILE = """
from pathlib import Path
import hatch_build as hook
hook.compile_library(Path(hook.SOURCE), Path(hook.LIBRARY))
"""


class NoHistory(Exception):
    """There is no commit to take the code from; the text says why."""


def check_out(revision: str, folder: Path) -> Path:
    """Write the code of a commit into a new folder, and return that.

    Its compiled functions come along if this checkout has its own: other kernels make other bits.

    Raises:
        NoHistory: Git, its history or that commit is not here.
    """
    try:
        archive = subprocess.run(
            ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
        ).stdout
    except OSError:
        raise NoHistory("no rolling upgrade: there is no git") from None
    except subprocess.CalledProcessError as error:
        raise NoHistory(
            f"no rolling upgrade: git has no commit {revision} here, as in a shallow clone "
            f"({error.stderr.decode().strip()}); fetch a depth of 2"
        ) from None
    with tarfile.open(fileobj=BytesIO(archive)) as opened:
        opened.extractall(folder, filter="data")
    if any(ROOT.glob("worker/backends/cpu/*.so")):
        _add_library(folder)
    return folder


def _add_library(folder: Path) -> None:
    source, library = (f"worker/backends/cpu/{name}" for name in ("kernels.c", "libcpu_kernels.so"))
    theirs = folder / source
    if theirs.exists() and theirs.read_bytes() == (ROOT / source).read_bytes():
        shutil.copy2(ROOT / library, folder / library)
    else:
        subprocess.run([sys.executable, "-c", _COMPILE], cwd=folder, check=True)
