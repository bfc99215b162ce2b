"""Compiles worker/backends/cpu/kernels.c when the package is built or installed; without a compiler the package does without."""

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

SOURCE, LIBRARY = "worker/backends/cpu/kernels.c", "worker/backends/cpu/libcpu_kernels.so"
COMPILE = ["-std=c11", "-O3", "-ffp-contract=off", "-fopenmp", "-fPIC", "-c"]


class CompileKernels(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if sys.platform != "linux":
            return  # worker/backends/cpu/kernels.py finds torch's OpenMP there only
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
    """In two steps: linked with -fopenmp it would bring a library of OpenMP beside torch's."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with TemporaryDirectory(dir=library.parent) as folder:
        compiled, linked = Path(folder) / "kernels.o", Path(folder) / library.name
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        for arguments in (
            [*COMPILE, f'-DSOURCE="{digest}"', str(source), "-o", str(compiled)],
            ["-shared", str(compiled), "-lm", "-o", str(linked)],
        ):
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
        linked.replace(library)  # at once: a worker may have the old one open
