"""The systems that the service is compared with.

They do the same work, and nothing while others are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from bench.commands import peers
from bench.lib.model import DEFAULT
from bench.lib.report import Report
from bench.systems import bare_engine, pipelines
from bench.systems.pipelines import Pipe
from bench.systems.servers import DrawingProcess, RqWorker
from tests.support.processes import eventually

PIPE = Pipe(DEFAULT, "cpu")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(params=["RQ", "alone"])
def system(request: pytest.FixtureRequest, valkey_url: str) -> Iterator[RqWorker | DrawingProcess]:
    started: RqWorker | DrawingProcess
    if request.param == "RQ":
        started = RqWorker("RQ", "rq.SimpleWorker", valkey_url, PIPE)
    else:
        prepare = partial(pipelines.prepare, PIPE, pipelines.plain, (1,))
        started = DrawingProcess("alone", prepare)
    with closing(started):
        yield started


def test_a_peer_draws_what_it_is_asked_for_and_is_stopped_while_others_are_measured(
    system: RqWorker | DrawingProcess,
) -> None:
    with system.awake() as draw:
        pngs = draw(count=1, steps=2, seed=1)
    assert [png[:8] for png in pngs] == [b"\x89PNG\r\n\x1a\n"]
    eventually(lambda: state(system.pid) == "T", 60, "the process is stopped")


def test_the_engine_alone_draws_each_picture_of_a_seed_whatever_the_count() -> None:
    description, draw = bare_engine.prepare(DEFAULT, "cpu", "fp32")
    assert description == "in fp32, without HTTP, queue and PNGs"
    three = draw(count=3, steps=2, seed=1)
    assert draw(count=1, steps=2, seed=1) == three[:1]
    assert [len(pixels) for pixels in three] == 3 * [28 * 28]
    assert len(set(three)) == 3


def state(pid: int) -> str:
    """Return the state of a process; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_ratio_compares_rates_of_the_same_round(tmp_path: Path) -> None:
    rates = {"ours": [100.0, 20.0, 90.0], "theirs": [10.0, 10.0, 10.0]}
    peers.tabulate(Report(tmp_path, "peers", "cpu"), "A workload", rates)
    row = "| theirs | 10.0          | 9                         | 2 to 10             |"
    assert row in (tmp_path / "peers.md").read_text()
