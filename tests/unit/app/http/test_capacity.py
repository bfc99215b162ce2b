from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

ASK = """
import logging, resource, sys
from app.http.capacity import below_descriptors
soft, hard, most = map(int, sys.argv[1:])
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(below_descriptors(most), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "most", "answer", "said"),
    [
        (256, 1024, 4096, "768 1024", "holds at most 768 connections instead of 4096"),
        (1024, 1024, 100, "100 1024", ""),
        (256, 1024, 500, "500 756", ""),
        (200, 200, 10, "1 200", "holds at most 1 connections instead of 10"),
    ],
)
def test_the_soft_limit_is_raised_and_connections_stay_below_it(
    soft: int, hard: int, most: int, answer: str, said: str
) -> None:
    if hard > resource.getrlimit(resource.RLIMIT_NOFILE)[1]:
        pytest.skip(f"no process may open {hard} files here")
    run = subprocess.run(
        [sys.executable, "-c", ASK, str(soft), str(hard), str(most)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert run.stdout.strip() == answer
    assert said in run.stderr
    assert bool(said) == bool(run.stderr)
