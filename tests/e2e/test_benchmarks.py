"""The benchmarks that use the whole service, on little work.

Their figures are not checked, because they need a quiet machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lib.model import DEFAULT
from bench.lib.report import Report
from bench.load import beside_bulk, over_http
from bench.load.arrivals import SIZES, Arrival
from bench.systems.service import ServiceClient, service

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceClient]:
    with service(tmp_path_factory.mktemp("service"), DEFAULT, "cpu", "fp32") as client:
        yield client


def test_arrivals_over_http_are_all_served(client: ServiceClient) -> None:
    arrivals = [Arrival(0.1 * number, size) for number, size in enumerate(SIZES[:2])]
    served = over_http.serve(client, arrivals, steps=2)
    assert served.image_steps == 2 * (1 + 8)
    assert all(0 < latency <= served.seconds for latency in served.latencies)


def test_a_big_job_and_small_ones_are_measured_and_the_big_one_does_not_stay(
    client: ServiceClient, tmp_path: Path
) -> None:
    report = Report(tmp_path, "beside-bulk", "cpu")
    beside_bulk.run(client, steps=2, jobs=3, every_s=0.1, alone_s=0.5, report=report)
    table = (tmp_path / "beside-bulk.md").read_text()
    assert "| big job, image-steps/s" in table
    assert (tmp_path / "beside-bulk.png").exists()
    assert client.jobs("running") == []
