"""A Python client made from the OpenAPI document, as docs/how-to/make-a-client.md shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.support.processes import ROOT
from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import open_key

GENERATOR = shutil.which("openapi-python-client")
PAGE = (ROOT / "docs" / "how-to" / "make-a-client.md").read_text()
pytestmark = [
    pytest.mark.skipif(
        GENERATOR is None,
        reason="there is no openapi-python-client; pipx install openapi-python-client",
    ),
]


def shown(language: str) -> str:
    """Return the first block of the page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0]


@pytest.fixture(scope="module")
def client_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generated package."""
    folder = tmp_path_factory.mktemp("client")
    config = folder / "client.yml"
    config.write_text(shown("yaml") + "post_hooks: []\n")
    document = ROOT / "docs" / "reference" / "openapi.json"
    command = ["generate", "--path", document, "--config", config, "--output-path", folder / "made"]
    subprocess.run([GENERATOR, *command], check=True, capture_output=True)
    return folder / "made"


@pytest.fixture
def running(redis: Redis) -> Iterator[IdleWorker]:
    """A worker that finishes the first job that is posted."""
    worker = IdleWorker(redis)
    over = threading.Event()

    def serve() -> None:
        key = open_key("interactive")
        while not over.wait(0.02):
            for job in redis.zrange(key, 0, -1):
                worker.start(job.decode())
                worker.publish(job.decode(), [0, 1])

    thread = threading.Thread(target=serve)
    thread.start()
    yield worker
    over.set()
    thread.join()


@pytest.mark.usefixtures("running")
def test_the_client_of_the_page_posts_waits_reads_events_images_and_errors(
    client_folder: Path, url: str, tmp_path: Path
) -> None:
    script = tmp_path / "example.py"
    script.write_text(shown("python").replace("http://127.0.0.1:8000", url))
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(client_folder), "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first.png").read_bytes() == png_of(0)
    assert re.search("StateEvent.*state=<State.FINISHED: 'finished'>", done.stdout)
    assert "count=0 is less than 1; use 1 or more." in done.stdout
