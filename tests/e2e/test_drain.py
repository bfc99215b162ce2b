"""Workers that are told to stop, at any time and in any way: they leave nothing to be done twice, and exit with 0 within 10 s."""

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

pytestmark = pytest.mark.slow


def image_steps(worker: WorkerProcess) -> int:
    """Of a worker that has exited."""
    return int(re.search(r"after (\d+) image-steps in all", worker.log.read_text())[1])


def test_a_worker_that_is_told_to_stop_hands_its_job_on_and_no_step_is_computed_twice(
    calm: Service,
) -> None:
    recipe = {"count": 64, "seed": 3, "steps": 120}
    calm.add_worker()
    undisturbed = calm.pngs(calm.post(**recipe)["id"])
    calm.add_worker()
    job = calm.post(**recipe)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0.1, 60, "the job is under way")
    first = calm.holder(job)
    assert first.stop(within_s=10) == 0
    assert not calm.job(job)["finished_at"], "it was stopped in the midst of the job"
    assert calm.pngs(job) == undisturbed
    assert calm.job(job)["attempts"] == 1
    for worker in calm.workers:
        assert worker.stop() == 0
    assert sum(map(image_steps, calm.workers)) == 2 * 64 * 120


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_is_told_to_stop_while_redis_is_away(calm: Service, fault: signal.Signals) -> None:
    worker = calm.add_worker()
    job = calm.post(count=64, steps=1000)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0, 60, "the job runs")
    server = calm.redis.info("server")["process_id"]
    os.kill(server, fault)
    eventually(
        lambda: "Redis does not answer" in worker.log.read_text(), 20, "the worker has noticed"
    )
    assert worker.stop(within_s=10) == 0
    assert "could not give back 1 shards" in worker.log.read_text()
    os.kill(server, signal.SIGCONT if fault == signal.SIGSTOP else 0)


@pytest.mark.parametrize("signals", [20 * [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_any_number_of_signals_of_either_kind_is_one_request_to_stop(
    calm: Service, signals: list[signal.Signals]
) -> None:
    worker = calm.add_worker()
    job = calm.post(count=64, steps=1000)["id"]
    eventually(lambda: calm.job(job)["progress"]["fraction"] > 0, 60, "the job runs")
    for number in signals:
        worker.signal(number)
    assert worker.exit_code(10) == 0
    assert "gave back 1 shards" in worker.log.read_text()


def test_a_worker_that_waits_for_redis_to_come_up_may_be_told_to_stop(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_model(tmp_path / "models", "tiny")
    settings = {
        "DDPM_REDIS_URL": "redis://127.0.0.1:1",
        "DDPM_DEVICE": "cpu",
        "DDPM_MODELS_DIR": str(tmp_path / "models"),
    }
    env = {**os.environ, **settings, "DDPM_MODELS": "tiny"}
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "cli", "worker"], env=env, cwd=ROOT, stderr=out
        ) as process,
    ):
        eventually(lambda: "start: Redis does not answer" in log.read_text(), 60, "it waits")
        process.terminate()
        assert process.wait(10) == 0


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
        eventually(
            lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text(),
            60,
            "it loads torch",
        )
        process.send_signal(number)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
