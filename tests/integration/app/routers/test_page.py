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


@pytest.mark.parametrize("path", ["/", "/openapi.json"])
@pytest.mark.parametrize("tags", ["{}", "W/{}", '"other", W/{}', "*"])
def test_a_client_that_has_a_file_is_not_sent_it_again(
    api: httpx.Client, path: str, tags: str
) -> None:
    etag = api.get(path).headers["etag"]
    again = api.get(path, headers={"If-None-Match": tags.format(etag)})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    lines = [("If-None-Match", '"other"'), ("If-None-Match", tags.format(etag))]
    assert api.get(path, headers=lines).status_code == 304


@pytest.mark.parametrize("path", ["/", "/openapi.json"])
@pytest.mark.parametrize(
    "header",
    [
        ("If-Modified-Since", "Fri, 01 Jan 99999 00:00:00 GMT"),
        ("If-Modified-Since", "Fri, 01 Jan 2038 00:00:00 GMT"),
        ("If-Modified-Since", "Fri, 99 Jan 2038 99:99:99 GMT"),
        ("If-None-Match", 'W/"other{}"'),
        ("If-None-Match", "x{}x"),
        ("If-None-Match", ""),
    ],
)
def test_neither_a_date_nor_a_foreign_tag_keeps_a_file_back(
    api: httpx.Client, path: str, header: tuple[str, str]
) -> None:
    first = api.get(path)
    name, value = header
    answer = api.get(path, headers={name: value.format(first.headers["etag"])})
    assert (answer.status_code, answer.content) == (200, first.content)
    assert "last-modified" not in answer.headers


def test_the_head_of_a_file_has_the_tag_of_the_file(api: httpx.Client) -> None:
    first = api.get("/")
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
