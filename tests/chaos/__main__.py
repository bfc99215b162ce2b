"""`python -m tests.chaos [--seed N] [--short]`: runs a storm and prints its figures.

The exit status is 1 if a promise was not kept.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.jobs import FULL, SHORT
from tests.chaos.run import storm

_PATIENCE_S = 1800.0


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
    options = parser.parse_args()
    began = time.monotonic()

    def report(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
        sys.stdout.flush()

    size = SHORT if options.short else FULL
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    verdict = storm(options.seed, size, _PATIENCE_S, folder, report)
    report(f"over\n\n{verdict}")
    for fault in verdict.faults():
        report(f"FAILED  {fault}")
    return 1 if verdict.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
