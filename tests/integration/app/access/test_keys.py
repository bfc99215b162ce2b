"""Who is let in, and that nobody sees another's jobs, in any route that there is."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from cli.serve.wait_until_ready import WaitUntilReady
from tests.support.problems import problem
from tests.support.server import serve
from tests.support.worker import IdleWorker

KEYS = {name: new_key(name) for name in ("ann", "bob")}
JSON = {"content-type": "application/json"}


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@pytest.fixture(scope="session")
def keyed_url(settings: ApiSettings) -> Iterator[str]:
    entries = ", ".join(entry for _, entry in KEYS.values())
    with serve(create_app(ApiSettings(**settings.model_dump() | {"api_keys": entries}))) as url:
        yield url


@pytest.fixture
def nobody(keyed_url: str, redis: Redis) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed_url, timeout=10) as client:
        yield client


@pytest.fixture
def ann(keyed_url: str, redis: Redis) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed_url, timeout=10, headers=bearer(KEYS["ann"][0])) as client:
        yield client


@pytest.fixture
def bob(keyed_url: str, redis: Redis) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=keyed_url, timeout=10, headers=bearer(KEYS["bob"][0])) as client:
        yield client


def operations(client: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    paths: dict[str, dict[str, Any]] = client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), path, body)
        for path, methods in paths.items()
        for method, body in methods.items()
    ]


def filled(path: str, job: str) -> str:
    return path.replace("{job_id}", job).replace("{index}", "0").replace("{name}", "tiny")


def test_every_route_but_the_open_ones_wants_a_key_and_says_so_in_openapi(
    nobody: httpx.Client,
) -> None:
    closed = [
        (method, path, body)
        for method, path, body in operations(nobody)
        if path not in ("/healthz", "/readyz", "/readyz/api")
    ]
    assert len(closed) > 8
    for method, path, documented in closed:
        response = nobody.request(method, filled(path, uuid.uuid4().hex))
        detail = problem(response, 401)["detail"]
        assert detail.startswith("the request has no API key; send it as `Authorization: Bearer")
        assert response.headers["www-authenticate"] == 'Bearer realm="ddpm"'
        assert documented["security"][0] == {"key": []}
        assert {"401", "429"} <= set(documented["responses"])


@pytest.mark.parametrize(
    "path",
    ["/static/nothing", "/v1", "/v1/nothing", "/v1/jobs/", "/metric", "/V1/jobs", "//v1/jobs"],
)
def test_an_unknown_path_wants_a_key_as_well(
    nobody: httpx.Client, ann: httpx.Client, path: str
) -> None:
    assert nobody.get(path).status_code == nobody.head(path).status_code == 401
    assert ann.get(path).status_code == 404


def test_health_readiness_and_the_reference_are_open(
    nobody: httpx.Client, worker: IdleWorker
) -> None:
    worker.announce()
    for path in ("/healthz", "/readyz", "/readyz/api", "/docs", "/openapi.json"):
        assert nobody.get(path).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer wrong",
        f"Bearer {KEYS['ann'][0]}x",
        f"Bearer {KEYS['ann'][1]}",
        f"bearer {KEYS['ann'][0][:-1]}",
        "Bearer \xff",
    ],
    # Keys are new in each process, so they cannot be ids.
    ids=["wrong", "too long", "the entry", "too short", "not ASCII"],
)
def test_a_wrong_key_is_refused_before_the_body_is_read(nobody: httpx.Client, sent: str) -> None:
    headers = {"authorization": sent.encode("latin-1")} | JSON
    response = nobody.post("/v1/jobs", content=b"{" * 10, headers=headers)
    assert problem(response, 401)["detail"].startswith("the API key is not known")
    assert response.headers["www-authenticate"] == 'Bearer realm="ddpm", error="invalid_token"'


@pytest.mark.parametrize(
    "sent", ["Basic YTpi", "Bearer", KEYS["ann"][0]], ids=["Basic", "nothing", "no scheme"]
)
def test_another_kind_of_authorization_is_no_key(nobody: httpx.Client, sent: str) -> None:
    problem(nobody.get("/v1/jobs", headers={"authorization": sent}), 401)


def test_the_scheme_may_be_in_any_case(nobody: httpx.Client) -> None:
    headers = {"authorization": f"bEARER {KEYS['ann'][0]}"}
    assert nobody.get("/v1/jobs", headers=headers).status_code == 200


def test_another_owners_job_is_answered_exactly_as_one_that_is_not_there(
    ann: httpx.Client, bob: httpx.Client, worker: IdleWorker
) -> None:
    job = ann.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
    worker.start(job)
    worker.publish(job, [0])
    nothing = uuid.uuid4().hex
    of_a_job = [(method, path) for method, path, _ in operations(bob) if "{job_id}" in path]
    assert len(of_a_job) >= 5
    for method, path in of_a_job:
        others = bob.request(method, filled(path, job))
        absent = bob.request(method, filled(path, nothing))
        assert others.status_code == absent.status_code == 404, path
        assert others.text.replace(job, nothing) == absent.text
        assert set(others.headers) == set(absent.headers)
    assert problem(bob.get(f"/v1/jobs/{job}", params={"wait": 5}), 404)["title"] == "Unknown job"
    assert ann.get(f"/v1/jobs/{job}/images/0").status_code == 200, "it is still there, and whole"


def test_a_listing_is_of_ones_own_jobs(ann: httpx.Client, bob: httpx.Client) -> None:
    anns, bobs = (
        client.post("/v1/jobs", json={"model": "tiny"}).json()["id"] for client in (ann, bob)
    )
    assert [job["id"] for job in ann.get("/v1/jobs").json()["jobs"]] == [anns]
    assert [job["id"] for job in bob.get("/v1/jobs").json()["jobs"]] == [bobs]
    from_the_start = {"cursor": f"{2**51}-{'f' * 32}"}
    page = bob.get("/v1/jobs", params=from_the_start).json()
    assert [job["id"] for job in page["jobs"]] == [bobs]


def test_owners_who_chose_the_same_idempotency_key_have_a_job_each(
    ann: httpx.Client, bob: httpx.Client
) -> None:
    def post(client: httpx.Client, count: int) -> str:
        body = {"model": "tiny", "count": count}
        return client.post("/v1/jobs", json=body, headers={"idempotency-key": "1"}).json()["id"]

    anns, bobs = post(ann, 1), post(bob, 2)
    assert anns != bobs
    assert post(ann, 1) == anns


def test_the_owner_can_do_all_that_there_is_to_do(ann: httpx.Client, worker: IdleWorker) -> None:
    job = ann.post("/v1/jobs", json={"model": "tiny"}).json()["id"]
    assert ann.get(f"/v1/jobs/{job}", params={"wait": 0.05}).json()["state"] == "queued"
    worker.start(job)
    worker.publish(job, [0])
    for path in ("images/0", "images/0/preview", "grid", "archive", "events"):
        assert ann.get(f"/v1/jobs/{job}/{path}").status_code == 200
    assert ann.post(f"/v1/jobs/{job}/cancel").json()["state"] == "finished"
    assert ann.delete(f"/v1/jobs/{job}").status_code == 204


@pytest.fixture
def limited_url(settings: ApiSettings) -> Iterator[str]:
    """An API that lets a key send a request in 100 s."""
    entries = ",".join(entry for _, entry in KEYS.values())
    limits = {"api_keys": entries, "key_requests_per_s": 0.01}
    with serve(create_app(ApiSettings(**settings.model_dump() | limits))) as url:
        yield url


def test_a_key_that_asks_too_fast_gets_429_and_holds_up_no_other(
    limited_url: str, redis: Redis
) -> None:
    def get(name: str, path: str = "/v1/models") -> httpx.Response:
        return httpx.get(f"{limited_url}{path}", headers=bearer(KEYS[name][0]))

    assert get("ann").status_code == 200
    refused = get("ann")
    wait_s = refused.headers["retry-after"]
    assert problem(refused, 429)["detail"].startswith(
        f"this key has sent more than 0.01 requests a second; ask again in {wait_s} s"
    )
    assert 50 < int(wait_s) <= 100, "what the request before has left of 100 s"
    assert get("ann", "/healthz").status_code == 200
    assert get("bob").status_code == 200


def test_keys_and_their_limits_ask_nothing_of_redis(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        redis_url = f"redis://127.0.0.1:{dead.getsockname()[1]}/0"
    settings = ApiSettings(
        redis_url=redis_url, models_dir=models_dir, api_keys=KEYS["ann"][1], key_requests_per_s=0.01
    )
    with serve(create_app(settings)) as url:

        def get_models(headers: dict[str, str]) -> int:
            return httpx.get(f"{url}/v1/models", headers=headers).status_code

        key = bearer(KEYS["ann"][0])
        assert [get_models(key), get_models(key), get_models({})] == [200, 429, 401]


REBOUND = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "",
    "[::",
    "192.168.1.7:8000",
]


@pytest.mark.parametrize("host", REBOUND)
def test_without_keys_a_page_that_was_made_to_resolve_here_gets_nothing(
    api: httpx.Client, host: str
) -> None:
    paths = ("/v1/jobs", "/readyz", "/openapi.json", "/docs", "/", "/static/page.js")
    responses = [api.get(path, headers={"host": host}) for path in paths]
    responses.append(api.post("/v1/jobs", json={"model": "tiny"}, headers={"host": host}))
    for response in responses:
        assert problem(response, 421)["detail"].endswith(
            "or set DDPM_API_KEYS or DDPM_ANONYMOUS_HOSTS where it runs."
        )
    assert api.get("/v1/jobs").json()["jobs"] == []
    for path, status in (("/healthz", "alive"), ("/readyz/api", "ready")):
        assert api.get(path, headers={"host": host}).json() == {"status": status}, (
            "to those who watch containers"
        )


def test_ddpm_up_finds_its_service_ready_on_an_address_that_is_no_name_of_its_own(
    url: str, worker: IdleWorker
) -> None:
    worker.announce()
    elsewhere = url.replace("127.0.0.1", "0.0.0.0")
    problem(httpx.get(f"{elsewhere}/readyz"), 421)
    readiness = WaitUntilReady(elsewhere)
    readiness()
    assert readiness.ready


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.1.2.3:80", "[::1]:8000"]
)
def test_without_keys_this_machines_own_names_are_answered(api: httpx.Client, host: str) -> None:
    assert api.get("/v1/jobs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("hosts", "host"), [("gpu-box, Other.Example", "other.example:8000"), ("*", "whatever")]
)
def test_without_keys_the_names_that_were_allowed_are_answered(
    settings: ApiSettings, redis: Redis, hosts: str, host: str
) -> None:
    named = ApiSettings(**settings.model_dump() | {"anonymous_hosts": hosts})
    with serve(create_app(named)) as url:
        assert httpx.get(f"{url}/v1/jobs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        {"x-forwarded-for": "192.0.2.7"},
        {"x-forwarded-proto": "https"},
        {"x-forwarded-host": "localhost"},
        {"x-real-ip": "192.0.2.7"},
        {"forwarded": "for=192.0.2.7"},
        {"via": "1.1 proxy"},
    ],
)
def test_without_keys_what_a_proxy_hands_on_is_refused(
    api: httpx.Client, header: dict[str, str]
) -> None:
    """nginx's plain proxy_pass asks for loopback, whoever asked nginx."""
    (name,) = header
    assert name in problem(api.get("/v1/jobs", headers=header), 403)["detail"]
    assert api.get("/healthz", headers=header).status_code == 200


def test_without_keys_a_proxy_hands_on_requests_for_names_that_were_allowed(
    settings: ApiSettings, redis: Redis
) -> None:
    named = ApiSettings(**settings.model_dump() | {"anonymous_hosts": "gpu-box, localhost"})
    proxied = {"x-forwarded-for": "192.0.2.7"}
    with serve(create_app(named)) as url:
        for host, status in (("gpu-box", 200), ("localhost", 403), ("127.0.0.1:8000", 403)):
            answer = httpx.get(f"{url}/v1/jobs", headers={"host": host, **proxied})
            assert answer.status_code == status, host


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_form_of_another_page_posts_no_job(api: httpx.Client, kind: str) -> None:
    """A browser sends these types anywhere without asking first."""
    problem(api.post("/v1/jobs", content=b'{"model": "tiny"}', headers={"content-type": kind}), 415)
    assert api.get("/v1/jobs").json()["jobs"] == []


def test_no_page_gets_leave_to_read_or_send_more(api: httpx.Client) -> None:
    asked = {
        "origin": "https://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    for response in (api.options("/v1/jobs", headers=asked), api.get("/v1/jobs", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_with_keys_any_host_name_will_do(ann: httpx.Client) -> None:
    assert ann.get("/v1/jobs", headers={"host": "pictures.example"}).status_code == 200
