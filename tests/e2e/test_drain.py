"""Workers that are asked to stop, at any time and in any way.

They leave nothing to be done twice, and exit with 0.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Service
from tests.support.folders import write_model
from tests.support.processes import ROOT, WorkerProcess, eventually

STOPS_WITHIN_S = 60
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def image_steps(worker: WorkerProcess) -> int:
    """Return the image-steps of a worker that has exited, from its log."""
    return int(re.search(r"after (\d+) image-steps in all", worker.log.read_text())[1])


def test_a_stopping_worker_hands_its_job_on_and_no_step_is_computed_twice(
    calm: Service,
) -> None:
    recipe = {"count": 64, "seed": 3, "steps": 160}
    calm.add_worker()
    undisturbed = calm.pngs(calm.post(**recipe)["id"])
    calm.add_worker()
    job = calm.post(**recipe)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0.1, 120, "the job is under way")
    first = calm.holder(job)
    assert first.stop(STOPS_WITHIN_S) == 0
    assert not calm.job(job)["finished_at"], "it was stopped in the midst of the job"
    assert calm.pngs(job) == undisturbed
    assert calm.job(job)["attempts"] == 1
    for worker in calm.workers:
        assert worker.stop(STOPS_WITHIN_S) == 0
    assert sum(map(image_steps, calm.workers)) == 2 * 64 * 160


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_stops_while_redis_is_away(calm: Service, fault: signal.Signals) -> None:
    worker = calm.add_worker()
    job = calm.post(count=64, steps=1000)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0, 120, "the job runs")
    server = calm.redis.info("server")["process_id"]
    os.kill(server, fault)
    noticed = "Redis does not answer"
    eventually(lambda: noticed in worker.log.read_text(), 120, "the worker has noticed")
    assert worker.stop(STOPS_WITHIN_S) == 0
    assert "could not give back 1 shards" in worker.log.read_text()
    os.kill(server, signal.SIGCONT if fault == signal.SIGSTOP else 0)


@pytest.mark.parametrize("signals", [20 * [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_any_number_of_signals_of_either_kind_is_one_request_to_stop(
    calm: Service, signals: list[signal.Signals]
) -> None:
    worker = calm.add_worker()
    job = calm.post(count=64, steps=1000)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0, 120, "the job runs")
    for number in signals:
        worker.signal(number)
    assert worker.exit_code(STOPS_WITHIN_S) == 0
    assert "gave back 1 shards" in worker.log.read_text()


def test_a_worker_that_waits_for_redis_can_be_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_model(tmp_path / "models", "tiny")
    settings = {
        "DDPM_REDIS_URL": "redis://127.0.0.1:1",
        "DDPM_DEVICE": "cpu",
        "DDPM_MODELS_DIR": str(tmp_path / "models"),
    }
    env = {**os.environ, **settings, "DDPM_MODELS": "tiny"}
    command = [sys.executable, "-m", "cli", "worker"]
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=env, cwd=ROOT, stderr=out) as process,
    ):
        eventually(lambda: "start: Redis does not answer" in log.read_text(), 120, "it waits")
        process.terminate()
        assert process.wait(STOPS_WITHIN_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_still_loading_leaves_at_once(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "worker"],
        env={**os.environ, "DDPM_REDIS_URL": "redis://127.0.0.1:1", "DDPM_DEVICE": "cpu"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        maps = Path(f"/proc/{process.pid}/maps")
        eventually(lambda: "libtorch" in maps.read_text(), 120, "it loads torch")
        process.send_signal(number)
        assert process.wait(STOPS_WITHIN_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
