"""Compiles worker/backends/cpu/kernels.c when the package is built or installed.

Where there is no compiler the package does without the library.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "worker/backends/cpu/kernels.c"
LIBRARY = "worker/backends/cpu/libcpu_kernels.so"
COMPILE = ["-std=c11", "-O3", "-ffp-contract=off", "-fopenmp", "-fPIC", "-c"]


class CompileKernels(BuildHookInterface[Any]):
    """The build hook, which adds the compiled library to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; without one, warn and build a wheel of Python alone."""
        # worker/backends/cpu/kernels.py finds torch's OpenMP on Linux only.
        if sys.platform != "linux":
            return
        root = Path(self.root)
        try:
            compile_library(root / SOURCE, root / LIBRARY)
        except (OSError, subprocess.CalledProcessError) as error:
            (root / LIBRARY).unlink(missing_ok=True)
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(
                f"{SOURCE} is not compiled, and steps on a CPU will be slower: {reason}"
            )
            return
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def compile_library(source: Path, library: Path) -> None:
    """Compile `source` into the shared library `library`, with the sha256 of the source in it.

    It takes two steps, because linking with -fopenmp would bring a second OpenMP next to torch's.

    Raises:
        OSError: There is no compiler, or a file cannot be read or written.
        subprocess.CalledProcessError: The compiler failed; `stderr` has its message.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with TemporaryDirectory(dir=library.parent) as folder:
        compiled = Path(folder) / "kernels.o"
        linked = Path(folder) / library.name
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        for arguments in (
            [*COMPILE, f'-DSOURCE="{digest}"', str(source), "-o", str(compiled)],
            ["-shared", str(compiled), "-lm", "-o", str(linked)],
        ):
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
        # Replace it in one step, because a worker may have the old one open.
        linked.replace(library)
