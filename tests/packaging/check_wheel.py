"""Check the package as a stranger gets it: build it, install it outside the checkout, use it.

`python tests/packaging/check_wheel.py` installs the wheel with all it depends on, which is much to
download. `--packages-from VENV` takes those from a virtual environment that has them; `make
wheel-check` does so. `build` and `hatchling` have to be installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "cli", "models", "worker")
# Of each of these the wheel must hold at least one, so that a tree which lost them does not pass.
KINDS = (
    "*/__init__.py",
    "*/*/__init__.py",
    "app/static/*.html",
    "app/static/*.js",
    "models/train/recipes/*.toml",
    "models/weights/*/card.json",
    "models/weights/*/unet/*.safetensors",
    "worker/jobs/lua/*.lua",
    "worker/backends/cpu/*.c",
    "*/py.typed",
)
COMPILED = "worker/backends/cpu/*.so"
IN_SDIST = ("LICENSE", "README.md", "hatch_build.py", "pyproject.toml")
USES = """
import app.main, worker.__main__
from importlib.metadata import version
from pathlib import Path
import cli, models, sys
for package in (app, cli, models, worker):
    assert Path(package.__file__).is_relative_to(sys.prefix), package.__file__
print(version("ddpm-service"))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each check that passes. Returns 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dist", type=Path, help="the folder to build in; default: a new one")
    parser.add_argument("--packages-from", type=Path, metavar="VENV", help="installs nothing else")
    given = parser.parse_args(arguments)
    with TemporaryDirectory(prefix="wheel-check-") as folder:
        try:
            check(Path(folder), given.dist, given.packages_from)
        except Failed as failed:
            print(f"FAILED  {failed}", file=sys.stderr)
            return 1
    return 0


class Failed(Exception):
    """A check that does not pass; the text says which, and why."""


def check(folder: Path, dist: Path | None, packages_from: Path | None) -> None:
    """Build, look at what was built, install it and run it. Raises Failed."""
    sdist, wheel = build(dist or folder / "dist")
    expected = packaged_files(ROOT)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    require_files(sdist.name, names, {*expected, *IN_SDIST})
    with zipfile.ZipFile(wheel) as archive_of_wheel:
        names = set(archive_of_wheel.namelist())
    require_files(wheel.name, names, expected)
    require_kinds(wheel.name, names, KINDS)
    if sys.platform == "linux":
        require_kinds(f"{wheel.name} (is there no C compiler?)", names, [COMPILED])
    python = install(wheel, folder / "venv", packages_from)
    use(python, folder / "elsewhere")


def build(dist: Path) -> tuple[Path, Path]:
    """Build the sdist and, from it, the wheel. What the sdist lacks is then missing in both."""
    before = set(dist.glob("*"))
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)])
    built = sorted(set(dist.glob("*")) - before or before, key=lambda path: path.stat().st_mtime)
    sdists, wheels = ([p for p in built if p.name.endswith(end)] for end in (".tar.gz", ".whl"))
    if not (sdists and wheels):
        raise Failed(f"{dist} holds {', '.join(p.name for p in built) or 'nothing'}")
    print(f"ok      {sdists[-1].name} and {wheels[-1].name} are built")
    return sdists[-1], wheels[-1]


def packaged_files(root: Path) -> set[str]:
    """List the files of the packages in the checkout, without what compilers left there."""
    return {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }


def require_files(archive: str, names: Iterable[str], expected: Iterable[str]) -> None:
    """Raise Failed, naming some, where `archive` lacks files that are expected."""
    missing = sorted(set(expected) - set(names))
    if missing:
        raise Failed(f"{archive} lacks {len(missing)} files: {', '.join(missing[:5])}")
    print(f"ok      {archive} holds all {len(set(expected))} files of the checkout")


def require_kinds(archive: str, names: Iterable[str], kinds: Iterable[str]) -> None:
    """Raise Failed where `archive` has no file of one of the kinds."""
    paths = [PurePosixPath(name) for name in names]
    for kind in kinds:
        found = [path for path in paths if path.match(kind)]
        if not found:
            raise Failed(f"{archive} holds no {kind}")
        print(f"ok      {kind}: {len(found)}")


def install(wheel: Path, folder: Path, packages_from: Path | None) -> Path:
    """Install the wheel in a fresh virtual environment; returns that one's Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if packages_from is None:
        run([*command, "-c", str(ROOT / "constraints.txt"), str(wheel)])
    else:
        theirs, ours = site_packages(packages_from), site_packages(folder)
        # A .pth there is not followed, so an editable install of the checkout stays out of reach.
        (ours / "packages-from.pth").write_text(f"{theirs}\n")
        run([*command, "--no-deps", "--no-index", "--ignore-installed", str(wheel)])
    print(f"ok      {wheel.name} is installed in an environment of its own")
    return python


def site_packages(environment: Path) -> Path:
    """Find the folder of the packages in a virtual environment. Raises Failed if there is none."""
    base = str(environment.absolute())
    path = Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))
    if not path.is_dir():
        raise Failed(f"{environment} is no virtual environment of this Python: no {path}")
    return path


def use(python: Path, folder: Path) -> None:
    """Call the command and import both processes, from a folder that holds no package of ours."""
    folder.mkdir()
    command = str(python.with_name("ddpm"))
    for line in ([command, "--help"], [command, "models"], [str(python), "-c", USES]):
        shown = "import app.main, worker.__main__" if line[-1] == USES else f"ddpm {line[-1]}"
        if not run(line, cwd=folder).strip():
            raise Failed(f"`{shown}` prints nothing")
        print(f"ok      {shown}")


def run(command: Sequence[str], cwd: Path = ROOT) -> str:
    """Run a command without the checkout on its path; returns what it prints. Raises Failed."""
    ours = {"PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        end = (done.stderr or done.stdout).strip()[-2000:]
        raise Failed(f"`{' '.join(command)}` ends with {done.returncode}: {end}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
