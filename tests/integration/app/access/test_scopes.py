"""Keys of a file: what each may do, whose jobs it sees, and its own limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import httpx
import pytest
from redis import Redis

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.server import serve

Client = Callable[[str], httpx.Client]
JOB = {"model": "tiny", "count": 2, "steps": 10}


@pytest.fixture
def client(settings: ApiSettings, tmp_path: Path, redis: Redis) -> Iterator[Client]:
    """`client("ann")`: a client with the key of that name in the file."""
    scopes = {
        "ann": '["submit", "read"]',
        "watcher": '["read"]',
        "poster": '["submit"]',
        "oncall": '["operate"]',
    }
    keys = {name: new_key(name) for name in [*scopes, "late"]}
    hashes = {name: entry.partition(":")[2] for name, (_, entry) in keys.items()}
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    tables = [
        f'[{name}]\nmax_open_image_steps = 50\nkeys = [{{ sha256 = "{hashes[name]}", '
        f"scopes = {text} }}]"
        for name, text in scopes.items()
    ]
    tables.append(f'[late]\nkeys = [{{ sha256 = "{hashes["late"]}", expires = {yesterday} }}]')
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(tables))
    app = create_app(ApiSettings(**settings.model_dump() | {"api_keys_file": path}))
    with serve(app) as url, ExitStack() as stack:

        def client(name: str) -> httpx.Client:
            headers = {"authorization": f"Bearer {keys[name][0]}"}
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))

        yield cache(client)


def test_a_key_that_only_reads_cannot_post_and_one_that_only_posts_cannot_read(
    client: Client,
) -> None:
    posted = client("poster").post("/v1/jobs", json=JOB)
    assert posted.status_code == 202
    assert client("poster").delete(f"/v1/jobs/{posted.json()['id']}").status_code == 204
    said = problem(client("watcher").post("/v1/jobs", json=JOB), 403)["detail"]
    assert said.startswith("this takes a key with the scope submit, and this key has read;")
    for path in ("/v1/jobs", "/v1/me", "/metrics"):
        assert client("watcher").get(path).status_code == 200
        assert client("poster").get(path).status_code == 403


def test_an_operators_key_sees_and_ends_everybodys_jobs(client: Client) -> None:
    ann, oncall, watcher = map(client, ("ann", "oncall", "watcher"))
    job = ann.post("/v1/jobs", json=JOB).json()["id"]
    other = ann.post("/v1/jobs", json=JOB).json()["id"]
    assert oncall.get(f"/v1/jobs/{job}").json()["owner"] == "ann"
    assert oncall.get(f"/v1/jobs/{job}?wait=0").json()["id"] == job
    listed = oncall.get("/v1/jobs", params={"owner": "ann"}).json()["jobs"]
    assert [found["id"] for found in listed] == [other, job]
    assert oncall.get("/v1/jobs").json()["jobs"] == [], "its own"
    with oncall.stream("GET", f"/v1/jobs/{job}/events") as events:
        assert events.status_code == 200
    assert oncall.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert oncall.delete(f"/v1/jobs/{other}").status_code == 204
    assert ann.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"

    assert problem(watcher.get(f"/v1/jobs/{job}"), 404)
    said = problem(watcher.get("/v1/jobs", params={"owner": "ann"}), 403)["detail"]
    assert "the scope operate, and" in said
    assert ann.get("/v1/jobs", params={"owner": "ann"}).status_code == 200


def test_an_expired_key_is_told_so(client: Client) -> None:
    response = client("late").get("/v1/jobs")
    assert problem(response, 401)["detail"].startswith("the API key has expired;")


def test_a_client_is_told_what_it_may_do_and_what_is_left(client: Client) -> None:
    ann = client("ann")
    assert ann.post("/v1/jobs", json=JOB).status_code == 202
    me = ann.get("/v1/me").json()
    requests, kept_bytes = me.pop("requests"), me.pop("kept_bytes")
    assert kept_bytes["used"] + kept_bytes["left"] == kept_bytes["most"] == 100_000_000_000
    assert (requests["most"], requests["used"] + requests["left"]) == (200, 200)
    assert me == {
        "name": "ann",
        "scopes": ["read", "submit"],
        "expires_at": None,
        "requests_per_s": 100.0,
        "open_image_steps": {"most": 50, "used": 20, "left": 30},
        "streams": {"most": 1000, "used": 0, "left": 1000},
        "open_jobs": {"most": 20_000, "used": 1, "left": 19_999},
        "kept_jobs": {"most": 200_000, "used": 1, "left": 199_999},
    }
    refused = problem(ann.post("/v1/jobs", json=JOB | {"count": 4}), 429)
    assert "more than the 50 that one key may have" in refused["detail"]
    too_large = problem(ann.post("/v1/jobs", json=JOB | {"count": 6}), 422)
    assert "more than the 50 that one key may have open" in too_large["detail"]


def test_everybody_is_local_where_there_are_no_keys(api: httpx.Client) -> None:
    me = api.get("/v1/me").json()
    assert (me["name"], me["requests_per_s"]) == ("local", None)
