"""Two `ddpm api`, as of two hosts, behind one nginx: one Redis, one results store, no memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from redis import Redis

from tests.support.front import HOST, nginx
from tests.support.processes import ROOT, eventually, later
from tests.support.sse import read
from tests.support.stores import free_port
from tests.support.worker import IdleWorker, png_of
from worker.results.url import open_store

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.redis, pytest.mark.timeout(400)]
# The machine may be busy.
expect.set_options(timeout=60_000)


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """Clients of both hosts, their URLs, and a worker with their results store."""

    first: httpx.Client
    second: httpx.Client
    urls: tuple[str, str]
    worker: IdleWorker

    def post(self, **request: object) -> str:
        """Post a job at the first host; return its id."""
        return str(self.first.post("/v1/jobs", json=request).raise_for_status().json()["id"])


@contextmanager
def ddpm_api(log: Path, **settings: str) -> Iterator[str]:
    """Run `ddpm api` for the block, and yield its URL."""
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("DDPM_")}
    env |= {f"DDPM_{name.upper()}": value for name, value in settings.items()}
    env |= {"DDPM_API_PROCESSES": "1", "DDPM_PORT": str(port), "PYTHONPATH": str(ROOT)}
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-m", "cli", "api"], env=env, stdout=out, stderr=out
        ) as p,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: _answers(url) or p.poll() is not None, 60, "the API answers")
            assert p.poll() is None, log.read_text()
            yield url
        finally:
            p.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def hosts(shared_valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    folder = tmp_path_factory.mktemp("hosts")
    results = f"file://{folder}/results"
    settings = {
        "redis_url": shared_valkey_url,
        "results_url": results,
        "root_path": "/ddpm",
        "trusted_proxies": "127.0.0.1",
        "anonymous_hosts": HOST,
    }
    with ExitStack() as stack:
        urls = [
            stack.enter_context(ddpm_api(folder / name, **settings)) for name in ("first", "second")
        ]
        first, second = (
            stack.enter_context(httpx.Client(base_url=url, timeout=60)) for url in urls
        )
        redis = stack.enter_context(Redis.from_url(shared_valkey_url))
        redis.flushall()
        yield TwoHosts(first, second, (urls[0], urls[1]), IdleWorker(redis, open_store(results)))


def test_a_key_of_one_host_is_known_at_the_other(hosts: TwoHosts) -> None:
    header = {"Idempotency-Key": uuid4().hex}
    ids = {
        client.post("/v1/jobs", json={"count": 2}, headers=header).json()["id"]
        for client in (hosts.first, hosts.second, hosts.first)
    }
    assert len(ids) == 1


def test_events_go_on_at_the_other_host_behind_the_last_one(hosts: TwoHosts) -> None:
    job = hosts.post(count=3)
    hosts.worker.start(job)
    hosts.worker.publish(job, [1])
    with read(hosts.first, job) as stream:
        seen = stream.until("image", index=1)
    hosts.worker.publish(job, [0, 2])
    with read(hosts.second, job, after=seen[-1].id) as stream:
        rest = list(stream)
    assert [event.data["index"] for event in rest if event.name == "image"] == [0, 2]
    assert [event.data["state"] for event in rest if event.name == "state"] == ["finished"]


def test_a_wait_at_one_host_ends_with_a_cancel_at_the_other(hosts: TwoHosts) -> None:
    job = hosts.post()
    with later(0.3, hosts.second.post, f"/v1/jobs/{job}/cancel"):
        assert hosts.first.get(f"/v1/jobs/{job}?wait=50").json()["state"] == "cancelled"


def test_pages_of_a_listing_come_from_either_host(hosts: TwoHosts) -> None:
    posted = [hosts.post() for _ in range(4)]
    met: list[str] = []
    cursor = ""
    for client in (hosts.first, hosts.second):
        page = client.get(f"/v1/jobs?limit=2{cursor}").json()
        met += [job["id"] for job in page["jobs"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert met == posted[::-1]


def test_images_previews_and_archives_come_from_either_host(hosts: TwoHosts) -> None:
    job = hosts.post(count=2)
    hosts.worker.start(job)
    hosts.worker.publish(job, [0])
    hosts.worker.show(job, 1)
    for client in (hosts.first, hosts.second):
        assert client.get(f"/v1/jobs/{job}/images/0").content == png_of(0)
        assert client.get(f"/v1/jobs/{job}/images/1/preview").content == png_of(77)
    hosts.worker.publish(job, [1])
    etags = {
        client.get(f"/v1/jobs/{job}/{path}").headers["etag"]
        for client in (hosts.first, hosts.second)
        for path in ("archive",)
    }
    assert len(etags) == 1


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; Debian has it")
def test_the_page_works_where_each_request_may_meet_another_host(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    with nginx(tmp_path, *hosts.urls) as front, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[f"--host-resolver-rules=MAP {HOST} 127.0.0.1", "--disable-gpu"],
            chromium_sandbox=False,
        )
        page = browser.new_page()
        page.goto(f"http://{HOST}:{front.base_url.port}/ddpm/")
        before = len(front.get("/ddpm/v1/jobs?limit=15").json()["jobs"])
        expect(page.locator("article")).to_have_count(before)
        page.get_by_role("button", name="Sample").click()
        expect(page.locator("article")).to_have_count(min(before + 1, 20))
        job = front.get("/ddpm/v1/jobs?limit=1").json()["jobs"][0]
        hosts.worker.start(job["id"])
        hosts.worker.publish(job["id"], range(job["count"]))
        expect(page.locator("article").first.locator("img").first).to_be_visible()
        browser.close()
