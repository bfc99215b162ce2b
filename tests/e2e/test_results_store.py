"""The service with its PNGs in a folder, and images that live for seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis as redis_py

from app.main import create_app
from app.settings import ApiSettings
from tests.e2e.conftest import Service
from tests.support.folders import write_model
from tests.support.processes import ROOT, WorkerProcess, eventually
from tests.support.server import serve
from worker.jobs.keys import png_key

# Long enough to get the images before they expire, on a busy machine too.
TTL_S = 20
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "of all jobs"


@pytest.fixture(scope="module")
def stored(
    shared_valkey_url: str, tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("stored")
    write_model(root / "models", "tiny")
    url = f"file://{folder}"
    settings = ApiSettings(
        redis_url=shared_valkey_url,
        models_dir=root / "models",
        results_url=url,
        results_ttl_s=TTL_S,
    )
    worker = {
        "redis_url": shared_valkey_url,
        "models_dir": str(root / "models"),
        "models": "tiny",
        "results_url": url,
    }
    with (
        serve(create_app(settings)) as api,
        httpx.Client(base_url=api, timeout=30) as http,
        redis_py.Redis.from_url(shared_valkey_url) as client,
    ):
        client.flushall()
        workers = [WorkerProcess(root / "worker.log", device="cpu", **worker)]
        try:
            yield Service(http, client, workers, shared_valkey_url, root / "models", root)
        finally:
            workers[0].stop()


def files_of(folder: Path, job: str) -> dict[str, bytes]:
    """Return the files of a job, by name."""
    return {path.name: path.read_bytes() for path in (folder / job).glob("*")}


def test_pngs_lie_in_the_folder_are_served_from_it_and_go_when_their_time_is_over(
    stored: Service, folder: Path
) -> None:
    job = stored.post(count=3, seed=4, steps=5)["id"]
    ended = stored.finished(job)
    images = ended["images"]
    served = {f"{image['index']}.png": stored.http.get(image["url"]).content for image in images}
    assert files_of(folder, job) == served
    assert len(served) == 3
    assert not stored.redis.exists(png_key(job))
    assert stored.http.get(ended["links"]["grid"]).status_code == 200
    image = images[0]["url"]
    eventually(lambda: stored.http.get(image).status_code == 410, 120, "the image has expired")
    eventually(lambda: not (folder / job).exists(), 120, "the worker removed the objects")


def test_a_running_job_that_is_deleted_leaves_no_object(stored: Service, folder: Path) -> None:
    job = stored.post(count=200, steps=40)["id"]
    eventually(lambda: (folder / job).exists(), 120, "an image is stored")
    stored.http.delete(f"/v1/jobs/{job}")
    shard = f"rq:job:{job}-0"
    eventually(lambda: not stored.redis.exists(shard), 120, "the worker let the job go")
    eventually(lambda: not (folder / job).exists(), 120, "its objects are gone")
    time.sleep(1)
    assert not (folder / job).exists(), "the worker brought an object back"


def test_a_job_outlives_a_store_that_is_away(stored: Service, folder: Path) -> None:
    stored.finished(stored.post(count=1, steps=2)["id"])
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("where a disk was mounted")
    job = stored.post(count=2, steps=2)["id"]
    log = stored.workers[0].log
    says_so = "result sender: the results store"
    eventually(lambda: says_so in log.read_text(), 120, "the worker says so")
    eventually(lambda: stored.job(job)["state"] == "running", 120, "it waits with its images")
    folder.unlink()
    away.rename(folder)
    stored.finished(job)
    assert len(files_of(folder, job)) == 2


@pytest.mark.parametrize("process", ["worker", "cli api", "cli up"])
def test_a_url_that_cannot_be_used_ends_the_process_with_one_line(
    process: str, tmp_path: Path
) -> None:
    env = {
        **os.environ,
        "DDPM_RESULTS_URL": "nonsense://me:secret@host/x",
        "DDPM_DATA_DIR": str(tmp_path),
    }
    module, *words = process.split()
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line]
    fact = "DDPM_RESULTS_URL=nonsense://***@host/x is of an unknown kind"
    assert f"{fact}; use file://, s3:// or gs://" in line
    assert "secret" not in done.stdout + done.stderr
