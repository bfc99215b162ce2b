"""The short storm; `make chaos` runs the long one."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from tests.chaos.actors import ROOT
from tests.chaos.commit_before import NoHistory, check_out
from tests.chaos.jobs import SHORT
from tests.chaos.run import storm

SEED = 4


@pytest.mark.redis
@pytest.mark.slow
# It takes a minute on two idle cores.
@pytest.mark.timeout(1000)
@pytest.mark.skipif(sys.platform != "linux", reason="processes die with this one on Linux only")
def test_every_job_outlives_a_storm_with_the_same_bytes() -> None:
    lines: list[str] = []
    no_upgrade, before = None, ROOT
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            before = check_out("HEAD^", Path(folder) / "before")
        except NoHistory as reason:
            no_upgrade = reason
        verdict = storm(SEED, SHORT, 450, Path(folder), lines.append, before)
    assert verdict.faults() == [], "\n".join([*lines, str(verdict)])
    if no_upgrade:
        pytest.skip(f"all else was as promised; {no_upgrade}")
