from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import generate_latest

from app.operation.api_metrics import MULTIPROCESS_DIR, ApiMetrics

COUNTS = """
import sys
from prometheus_client import generate_latest
from app.operation.api_metrics import ApiMetrics
metrics = ApiMetrics()
metrics.in_flight = 2
metrics.observe("POST", "/v1/jobs", 202, 0.02, "ann")
metrics.sample()
print("counted", flush=True)
sys.stdin.readline()
if sys.argv[1] == "scrape":
    print(generate_latest(metrics.for_scrape()).decode())
"""


def values(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def start(folder: Path, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTS, what],
        env={**os.environ, MULTIPROCESS_DIR: str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    return process


def test_a_scrape_of_one_process_shows_what_all_of_the_host_have_counted(tmp_path: Path):
    gone = start(tmp_path, "leave")
    gone.communicate("\n")
    other, asked = start(tmp_path, "leave"), start(tmp_path, "scrape")
    found = values(asked.communicate("\n")[0])
    other.communicate("\n")
    posts = 'ddpm_http_request_seconds_count{method="POST",route="/v1/jobs",status="2xx"}'
    # What a process has counted outlives it; what it was doing does not.
    assert found[posts] == 3
    assert found['ddpm_http_requests_total{owner="ann"}'] == 3
    assert found["ddpm_http_requests_in_flight"] == 4
    assert found["ddpm_api_processes"] == 2


def test_an_unknown_method_is_counted_as_other():
    metrics = ApiMetrics()
    for method in ("BREW", "STEEP"):
        metrics.observe(method, "none", 405, 0.001, "")
    found = values(generate_latest(metrics.for_scrape()).decode())
    assert found['ddpm_http_request_seconds_count{method="other",route="none",status="4xx"}'] == 2


def test_the_process_tells_its_memory_time_and_files():
    found = values(generate_latest(ApiMetrics().for_scrape()).decode())
    assert found["ddpm_api_memory_bytes"] > 10e6
    assert found["ddpm_api_cpu_seconds"] > 0
    assert found["ddpm_api_open_files"] > 2
