"""The API behind proxies: real ones where they are installed, and forged headers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from app.main import create_app
from app.settings import ApiSettings
from tests.support.front import HOST, caddy, nginx
from tests.support.server import serve
from tests.support.worker import IdleWorker

pytestmark = pytest.mark.usefixtures("redis")
PROXIED = {"trusted_proxies": "127.0.0.1", "root_path": "/ddpm", "anonymous_hosts": HOST}


@pytest.fixture(scope="module")
def settings_behind(settings: ApiSettings) -> Callable[..., ApiSettings]:
    return lambda **changes: ApiSettings(**settings.model_dump() | changes)


@pytest.fixture(scope="module")
def behind(settings_behind: Callable[..., ApiSettings]) -> Iterator[str]:
    """An API as the how-to has it started, but without keys."""
    with serve(create_app(settings_behind(**PROXIED))) as url:
        yield url


@pytest.fixture(scope="module", params=[nginx, caddy])
def front(
    request: pytest.FixtureRequest, behind: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with request.param(tmp_path_factory.mktemp("front"), behind) as client:
        yield client


def post(client: httpx.Client, path: str = "/ddpm/v1/jobs") -> Any:
    response = client.post(path, json={"model": "tiny", "count": 2})
    assert response.status_code == 202, response.text
    assert response.headers["location"] == response.json()["links"]["self"]
    return response.json()


def test_every_link_of_a_job_leads_through_the_proxy(
    front: httpx.Client, worker: IdleWorker
) -> None:
    job = post(front)
    worker.start(job["id"])
    worker.publish(job["id"], [0, 1])
    for name, link in job["links"].items():
        call = front.post if name == "cancel" else front.get
        assert link.startswith("/ddpm/v1/jobs/")
        assert call(link).status_code == 200, name
    status = front.get(job["links"]["self"]).json()
    assert front.get(status["images"][0]["url"]).headers["content-type"] == "image/png"
    (listed,) = front.get("/ddpm/v1/jobs").json()["jobs"]
    assert listed["links"] == job["links"]


def test_events_come_through_the_proxy_as_they_happen(
    front: httpx.Client, worker: IdleWorker
) -> None:
    """The job has not ended when the first event is here, so nothing holds it back."""
    job = post(front)
    with front.stream("GET", job["links"]["events"]) as stream:
        lines = stream.iter_lines()
        assert '"queued"' in next(line for line in lines if line.startswith("data"))
        worker.start(job["id"])
        worker.publish(job["id"], [0])
        image = next(line for line in lines if '"url"' in line)
        url = json.loads(image.removeprefix("data:"))["url"]
        assert url == f"{job['links']['self']}/images/0"
        worker.publish(job["id"], [1])
        assert any('"finished"' in line for line in lines)


def test_the_pages_load_all_their_files_through_the_proxy(front: httpx.Client) -> None:
    assert front.get("/ddpm", follow_redirects=False).headers["location"].endswith("/ddpm/")
    for page in ("/ddpm/", "/ddpm/docs"):
        text = front.get(page).text
        files = [part.split('"')[0] for part in text.split('="')[1:] if part.startswith("static/")]
        assert files
        for file in files:
            assert front.get(urljoin(page, file)).status_code == 200, file
    assert front.get("/ddpm/openapi.json").json()["servers"] == [{"url": "/ddpm"}]


def test_json_is_compressed_on_its_way(front: httpx.Client) -> None:
    answer = front.get("/ddpm/openapi.json", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    ("headers", "location"),
    [
        ({"x-forwarded-host": HOST, "x-forwarded-prefix": "/other"}, "/other/v1/jobs/"),
        ({"x-forwarded-host": HOST, "x-forwarded-prefix": "/other/"}, "/other/v1/jobs/"),
        ({"x-forwarded-host": HOST}, "/ddpm/v1/jobs/"),
        ({"x-forwarded-host": HOST, "x-forwarded-prefix": "//evil.example"}, "/ddpm/v1/jobs/"),
        ({"x-forwarded-host": HOST, "x-forwarded-prefix": "/a\tb"}, "/ddpm/v1/jobs/"),
        ({"forwarded": f'for="[2001:db8::7]:4711";host="{HOST}";proto=https'}, "/ddpm/v1/jobs/"),
    ],
)
def test_a_trusted_proxy_names_host_and_prefix(
    behind: str, headers: dict[str, str], location: str
) -> None:
    with httpx.Client(base_url=behind, headers=headers) as proxy:
        assert post(proxy, "/v1/jobs")["links"]["self"].startswith(location)


def test_nobody_else_names_a_host_or_a_prefix(
    settings_behind: Callable[..., ApiSettings],
) -> None:
    elsewhere = settings_behind(anonymous_hosts=HOST, trusted_proxies="192.0.2.0/24")
    forged = {"x-forwarded-host": HOST, "x-forwarded-prefix": "/evil"}
    with serve(create_app(elsewhere)) as url:
        assert httpx.get(f"{url}/v1/jobs", headers=forged).status_code == 403
        named = httpx.Client(base_url=url, headers={"host": HOST, **forged})
        with named:
            assert post(named, "/v1/jobs")["links"]["self"].startswith("/v1/jobs/")


def test_other_origins_may_call_if_they_are_named(
    settings_behind: Callable[..., ApiSettings],
) -> None:
    origin = "https://app.example.com"
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,idempotency-key",
    }
    with (
        serve(create_app(settings_behind(cors_origins=origin))) as url,
        httpx.Client(base_url=url, headers={"origin": origin}) as page,
        httpx.Client(base_url=url, headers={"origin": "https://evil.example"}) as other,
    ):
        preflight = page.options("/v1/jobs", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        answer = page.get("/v1/jobs")
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
        for refused in (other.options("/v1/jobs", headers=asked), other.get("/v1/jobs")):
            assert "access-control-allow-origin" not in refused.headers


def test_answers_are_neither_sniffed_nor_kept(api: httpx.Client) -> None:
    for answer in (api.get("/v1/jobs"), api.get("/v1/jobs/x"), api.get("/healthz")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_the_api_document_is_written_once_and_not_sent_twice(api: httpx.Client) -> None:
    first = api.get("/openapi.json")
    assert first.headers["cache-control"] == "no-cache"
    again = api.get("/openapi.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
