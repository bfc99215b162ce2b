"""`python -m tests.chaos [--seed N] [--short]`: run a storm, print its figures; exit status 1 where a promise was not kept."""

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
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(10**6),
        help="of the jobs and of what happens when",
    )
    parser.add_argument("--short", action="store_true", help="less work, as in CI")
    asked = parser.parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    verdict = storm(
        asked.seed,
        SHORT if asked.short else FULL,
        _PATIENCE_S,
        folder,
        lambda text: _say(began, text),
    )
    _say(began, f"over\n\n{verdict}")
    for fault in verdict.faults():
        _say(began, f"FAILED  {fault}")
    return 1 if verdict.faults() else 0


def _say(began: float, text: str) -> None:
    sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
