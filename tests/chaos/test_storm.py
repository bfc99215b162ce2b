"""The short storm; `make chaos` runs the long one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from tests.chaos.jobs import SHORT
from tests.chaos.run import storm

SEED = 4


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(400)  # a minute on two idle cores
@pytest.mark.skipif(
    sys.platform != "linux", reason="the processes are tethered to this one by the kernel"
)
def test_every_job_outlives_a_storm_with_the_same_bytes() -> None:
    told: list[str] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        verdict = storm(SEED, SHORT, 180, Path(folder), told.append)
    assert verdict.faults() == [], "\n".join([*told, str(verdict)])
