"""The page and `/docs` in a real browser, behind nginx under a path. No worker is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from app.main import create_app
from app.settings import ApiSettings
from tests.support.front import HOST, nginx
from tests.support.server import serve

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(400),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; Debian has it"),
]
# The machine may be busy.
expect.set_options(timeout=60_000)


def test_docs_and_page_post_jobs_under_the_path_of_a_proxy(
    shared_valkey_url: str, tmp_path: Path
) -> None:
    settings = ApiSettings(
        redis_url=shared_valkey_url,
        root_path="/ddpm",
        trusted_proxies="127.0.0.1",
        anonymous_hosts=HOST,
    )
    with (
        serve(create_app(settings)) as url,
        nginx(tmp_path, url) as front,
        sync_playwright() as playwright,
    ):
        base = f"http://{HOST}:{front.base_url.port}/ddpm"
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[f"--host-resolver-rules=MAP {HOST} 127.0.0.1", "--disable-gpu"],
            chromium_sandbox=False,
        )
        page = browser.new_page()
        page.goto(f"{base}/docs")
        post = page.locator(".opblock-post", has=page.locator("[data-path='/v1/jobs']"))
        post.locator(".opblock-summary-control").click(timeout=60_000)
        post.get_by_role("button", name="Try it out").click()
        post.get_by_role("button", name="Execute").click()
        status = post.locator(".live-responses-table .response .response-col_status").first
        expect(status).to_contain_text("202")
        jobs = len(front.get("/ddpm/v1/jobs?limit=15").json()["jobs"])
        page.goto(f"{base}/")
        expect(page.locator("article")).to_have_count(jobs)
        page.get_by_role("button", name="Sample").click()
        expect(page.locator("article")).to_have_count(jobs + 1)
        browser.close()
