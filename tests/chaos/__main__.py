"""`python -m tests.chaos [--seed N] [--short] [--from REVISION]` runs a storm, and prints figures.

The exit status is 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.actors import ROOT
from tests.chaos.commit_before import NoHistory, check_out
from tests.chaos.jobs import FULL, SHORT
from tests.chaos.run import storm

_PATIENCE_S = 1800.0
# Of the long storm. A kill costs the same in the short one, which has less work.
_TWICE_AT_MOST = 0.10


def main() -> int:
    """Run a storm and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(10**6),
        help="of the jobs and of what happens when",
    )
    parser.add_argument("--short", action="store_true", help="less work, as in CI")
    parser.add_argument(
        "--from",
        dest="before",
        default="HEAD^",
        help="the commit that the rolling upgrade begins with",
    )
    options = parser.parse_args()
    began = time.monotonic()

    def report(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
        sys.stdout.flush()

    size = SHORT if options.short else FULL
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    before = ROOT
    try:
        before = check_out(options.before, folder / "before")
    except NoHistory as reason:
        report(str(reason))
    verdict = storm(options.seed, size, _PATIENCE_S, folder, report, before)
    report(f"over\n\n{verdict}")
    faults = verdict.faults() if options.short else verdict.faults(_TWICE_AT_MOST)
    for fault in faults:
        report(f"FAILED  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
