"""The files of the pages over HTTP. tests/e2e/test_page.py tests what the pages do."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.access.api_keys import new_key
from app.access.public_paths import PAGE_PATHS
from app.main import create_app
from app.routers.page import FOLDER
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.server import serve

TYPES = {
    "/": "text/html; charset=utf-8",
    "/static/page.js": "text/javascript; charset=utf-8",
    "/static/page.css": "text/css; charset=utf-8",
    "/static/icon.svg": "image/svg+xml",
    "/docs": "text/html; charset=utf-8",
    "/static/docs.js": "text/javascript; charset=utf-8",
    "/static/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "/static/swagger-ui.css": "text/css; charset=utf-8",
}


@pytest.mark.parametrize("path", TYPES)
def test_a_file_has_its_type_and_may_load_nothing_from_elsewhere(
    api: httpx.Client, path: str
) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, TYPES[path])
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert ("data:" in policy) == (path == "/docs")


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js", "/static/swagger-ui.css"])
@pytest.mark.parametrize(
    "asked", ["bytes=foo", "nonsense", "bytes=99999999-", "bytes=0-0", "bytes=0-0,2-3"]
)
def test_a_file_is_never_sent_in_part(api: httpx.Client, path: str, asked: str) -> None:
    answer = api.get(path, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, api.get(path).content)


def test_a_client_that_has_a_file_is_not_sent_it_again(api: httpx.Client) -> None:
    first = api.get("/")
    again = api.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = api.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        "docs.html",
        "redoc.standalone.js",
        "..%2fmain.py",
        "%2e%2e%2fmain.py",
        "%00",
        "a" * 1000,
    ],
)
def test_no_other_file_is_served(api: httpx.Client, name: str) -> None:
    problem(api.get(f"/static/{name}"), 404)


def test_every_file_is_one_that_needs_no_key() -> None:
    pages = {"index.html": "/", "docs.html": "/docs"}
    ours = {pages.get(file.name, f"/static/{file.name}") for file in FOLDER.iterdir()}
    assert ours == {path for path in PAGE_PATHS if "swagger" not in path}


def test_the_pages_need_no_key_so_that_they_can_ask_for_one(
    valkey_url: str, models_dir: Path
) -> None:
    _, entry = new_key("ann")
    app = create_app(ApiSettings(redis_url=valkey_url, models_dir=models_dir, api_keys=entry))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        answers = {path: client.get(path).status_code for path in PAGE_PATHS}
        assert answers == dict.fromkeys(PAGE_PATHS, 200)
        problem(client.get("/static/nothing.js"), 401)
