"""Signed links: what they read in place of a key, and what they do not."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from tests.support.clock import SimulatedClock
from tests.support.problems import problem
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.worker import IdleWorker, png_of

SECRET, OLD_SECRET = "new secret of links" * 2, "old secret of links" * 2
KEYS = {name: new_key(name) for name in ("ann", "bob")}
JOB = {"model": "tiny", "count": 3, "seed": 1}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


@pytest.fixture(scope="module")
def serving(settings: ApiSettings) -> Iterator[Callable[..., httpx.Client]]:
    """`serving(link_secret=...)`: a client, without a key, of an API with these settings."""
    with ExitStack() as stack:
        made: dict[str, httpx.Client] = {}

        def serving(**changed: Any) -> httpx.Client:
            name = repr(sorted(changed.items()))
            if name not in made:
                entries = {"api_keys": ",".join(entry for _, entry in KEYS.values())}
                chosen = settings.model_dump() | entries | {"link_secret": SECRET} | changed
                url = stack.enter_context(serve(create_app(ApiSettings(**chosen))))
                made[name] = stack.enter_context(httpx.Client(base_url=url, timeout=60))
            return made[name]

        yield serving


@pytest.fixture
def app_user(serving: Callable[..., httpx.Client], redis: Redis) -> httpx.Client:
    """A client without a key."""
    return serving()


def finished(client: httpx.Client, redis: Redis, owner: str = "ann") -> str:
    """Post a job, and return its id when all its images are there."""
    job: str = client.post("/v1/jobs", json=JOB, headers=bearer(owner)).json()["id"]
    worker = IdleWorker(redis)
    worker.start(job)
    worker.publish(job, range(3))
    return job


def links_of(client: httpx.Client, job: str, owner: str = "ann", **query: Any) -> dict[str, Any]:
    answer = client.get(f"/v1/jobs/{job}/links", params=query, headers=bearer(owner))
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_links_read_images_sheet_archive_and_events_without_a_key(
    app_user: httpx.Client, redis: Redis
) -> None:
    job = finished(app_user, redis)
    links = links_of(app_user, job)
    assert [link["index"] for link in links["images"]] == [0, 1, 2]
    for link in links["images"]:
        assert app_user.get(link["url"]).content == png_of(link["index"])
    assert app_user.get(links["grid"]).headers["content-type"] == "image/png"
    with zipfile.ZipFile(BytesIO(app_user.get(links["archive"]).content)) as archive:
        assert len(archive.namelist()) == 3
    told = app_user.get(links["events"])
    assert told.headers["content-type"].startswith("text/event-stream")
    assert '"state":"finished"' in told.text
    last = re.findall("^id: (.*)$", told.text, re.MULTILINE)[-1]
    assert app_user.get(links["events"], headers={"last-event-id": last}).status_code == 204


def test_a_linked_image_is_answered_as_with_a_key_but_for_its_referrer_policy(
    app_user: httpx.Client, redis: Redis
) -> None:
    job = finished(app_user, redis)
    url = links_of(app_user, job, image=1)["images"][0]["url"]
    own = {"x-request-id", "date", "ratelimit", "ratelimit-policy", "referrer-policy"}

    def answers(url: str, headers: dict[str, str]) -> Iterator[tuple[int, dict[str, str], bytes]]:
        etag = app_user.get(url, headers=headers).headers["etag"]
        for method in ("GET", "HEAD"):
            for more in ({}, {"range": "bytes=0-3"}, {"if-none-match": etag}):
                answer = app_user.request(method, url, headers=headers | more)
                seen = {name: at for name, at in answer.headers.items() if name not in own}
                yield answer.status_code, seen, answer.content

    linked = list(answers(url, {}))
    assert linked == list(answers(f"/v1/jobs/{job}/images/1", bearer("ann")))
    assert [status for status, *_ in linked].count(304) == 2
    assert app_user.get(url).headers["referrer-policy"] == "no-referrer"


def test_a_link_reads_its_own_path_and_changes_nothing(
    app_user: httpx.Client, redis: Redis
) -> None:
    job, other = finished(app_user, redis), finished(app_user, redis)
    links = links_of(app_user, job)
    query = links["images"][0]["url"].partition("?")[2]
    for path in (
        f"/v1/jobs/{job}",
        f"/v1/jobs/{job}/images/1",
        f"/v1/jobs/{job}/images/0/preview",
        f"/v1/jobs/{job}/grid",
        f"/v1/jobs/{job}/links",
        f"/v1/jobs/{other}/images/0",
        "/v1/jobs",
        "/v1/me",
        "/metrics",
        "/nowhere",
    ):
        said = problem(app_user.get(f"{path}?{query}"), 403)
        assert said["type"].endswith("bad-link")
        assert said["detail"].startswith("the link is not signed by this service for this path; ")
    for method, path in (("DELETE", f"/v1/jobs/{job}"), ("POST", f"/v1/jobs/{job}/cancel")):
        said = problem(app_user.request(method, f"{path}?{query}"), 403)
        assert said["detail"].startswith(f"a link only reads, and this is a {method}; ")


def test_a_link_that_was_changed_is_refused_and_not_repeated(
    app_user: httpx.Client, redis: Redis
) -> None:
    job = finished(app_user, redis)
    url = links_of(app_user, job)["grid"]
    path, token = url.split("?link=")
    expires, key, signature = token.split(".")
    forged = [
        f"{int(expires) + 60}.{key}.{signature}",
        f"{expires}.{key}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
        f"{expires}.{key}.{signature[:-1]}",
        f"{expires}.{'0' * 16}.{signature}",
        f"{expires}..{signature}",
        f"0{token}",
        f"{token}.",
        f"{token}%0A",
        f"{token}%00",
        f"{'9' * 400}.{key}.{signature}",
        f"{token}&link={token}",
        "",
        "%FF",
        "é",
    ]
    for sent in forged:
        answer = app_user.get(f"{path}?link={sent}")
        said = problem(answer, 403)
        assert said["type"].endswith("bad-link"), sent
        assert signature[1:-1] not in answer.text
    assert app_user.get(url).status_code == 200


def test_a_key_in_the_header_counts_whatever_the_link(app_user: httpx.Client, redis: Redis) -> None:
    job = finished(app_user, redis)
    assert app_user.get(f"/v1/jobs/{job}/grid?link=none", headers=bearer("ann")).status_code == 200
    grid = links_of(app_user, job)["grid"]
    assert app_user.get(grid, headers=bearer("bob")).status_code == 404
    assert app_user.get(grid, headers={"authorization": "Bearer none"}).status_code == 401


def test_links_are_made_for_jobs_that_the_key_sees(app_user: httpx.Client, redis: Redis) -> None:
    job = finished(app_user, redis)
    path = f"/v1/jobs/{job}/links"
    assert problem(app_user.get(path, headers=bearer("bob")), 404)["type"].endswith("unknown-job")
    assert app_user.get(path).status_code == 401
    unknown = problem(app_user.get(f"{path}?image=3", headers=bearer("ann")), 404)
    assert unknown["type"].endswith("unknown-image")
    for ttl_s in (59, 604_801, "soon"):
        wrong = app_user.get(f"{path}?ttl_s={ttl_s}", headers=bearer("ann"))
        assert problem(wrong, 422)["errors"][0]["field"] == "ttl_s"
    links = links_of(app_user, job)
    app_user.delete(f"/v1/jobs/{job}", headers=bearer("ann"))
    assert problem(app_user.get(links["grid"]), 404)["type"].endswith("unknown-job")


def test_a_service_without_a_secret_makes_no_links_and_takes_none(
    app_user: httpx.Client, serving: Callable[..., httpx.Client], redis: Redis
) -> None:
    job = finished(app_user, redis)
    bare = serving(link_secret="")
    said = problem(bare.get(f"/v1/jobs/{job}/links", headers=bearer("ann")), 404)
    assert said["type"].endswith("no-links")
    assert "has no DDPM_LINK_SECRET; ask its operator to set one" in said["detail"]
    refused = problem(bare.get(links_of(app_user, job)["grid"]), 403)
    assert refused["detail"].startswith(
        "this service signs no links, as it has no DDPM_LINK_SECRET"
    )


def test_links_of_an_old_secret_are_good_until_it_is_removed(
    serving: Callable[..., httpx.Client], redis: Redis
) -> None:
    before = serving(link_secret=OLD_SECRET)
    job = finished(before, redis)
    grid = links_of(before, job)["grid"]
    rotating = serving(link_old_secrets=OLD_SECRET)
    assert rotating.get(grid).status_code == 200
    new = links_of(rotating, job)["grid"]
    assert new != grid
    assert serving().get(new).status_code == 200
    assert serving().get(grid).status_code == 403
    assert before.get(new).status_code == 403


def test_links_follow_the_path_of_a_proxy_and_are_good_with_it_and_without(
    serving: Callable[..., httpx.Client], redis: Redis
) -> None:
    behind = serving(root_path="/ddpm")
    job = finished(behind, redis)
    grid = links_of(behind, job)["grid"]
    assert grid.startswith(f"/ddpm/v1/jobs/{job}/grid?link=")
    assert behind.get(grid).status_code == 200
    assert behind.get(grid.removeprefix("/ddpm")).status_code == 200
    assert problem(behind.get(grid.replace("/grid", "/archive")), 403)["type"].endswith("bad-link")


def test_a_link_expires_after_the_skew_of_clocks_and_is_the_same_within_a_minute(
    settings: ApiSettings, redis: Redis
) -> None:
    entries = {"api_keys": KEYS["ann"][1], "link_secret": SECRET}
    app = create_app(ApiSettings(**settings.model_dump() | entries))
    clock = SimulatedClock()
    clock.now_s = 1_800_000_030.0
    app.state.links.clock = clock
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        job = finished(client, redis)
        links = links_of(client, job, ttl_s=60)
        assert links["expires_at"] == "2027-01-15T08:02:00Z"
        clock.now_s += 29
        assert links_of(client, job, ttl_s=60) == links
        clock.now_s = 1_800_000_120 + 29.9
        assert client.get(links["grid"]).status_code == 200
        clock.now_s += 0.2
        said = problem(client.get(links["grid"]), 403)["detail"]
        assert said.startswith("the link has expired at 2027-01-15T08:02:00Z; load the page again")


def test_a_link_ends_with_the_key_that_made_it(
    settings: ApiSettings, redis: Redis, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    tables = {
        name: f'[{name}]\nkeys = [{{ sha256 = "{entry.partition(":")[2]}" }}]\n'
        for name, (_, entry) in KEYS.items()
    }
    keys.write_text("".join(tables.values()))
    app = create_app(
        ApiSettings(**settings.model_dump() | {"api_keys_file": keys, "link_secret": SECRET})
    )
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        job = finished(client, redis)
        grid = links_of(client, job)["grid"]
        assert client.get(grid).status_code == 200
        keys.write_text(tables["bob"])
        eventually(lambda: client.get(grid).status_code == 403, 60, "the file is read again")
        said = problem(client.get(grid), 403)["detail"]
        assert said.startswith("the key that made the link is no longer let in")


def test_requests_by_links_count_as_those_of_the_key(
    serving: Callable[..., httpx.Client], redis: Redis
) -> None:
    client = serving(key_requests_per_s=4)
    job = finished(client, redis)
    grid = links_of(client, job)["grid"]
    met = [client.get(grid).status_code for _ in range(12)]
    assert met[0] == 200
    assert 429 in met
    assert client.get("/v1/me", headers=bearer("ann")).status_code == 429
    assert client.get("/v1/me", headers=bearer("bob")).status_code == 200


def test_no_line_of_the_log_holds_a_link(
    app_user: httpx.Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    job = finished(app_user, redis)
    grid = links_of(app_user, job)["grid"]
    caplog.set_level("DEBUG")
    app_user.get(grid)
    app_user.get(grid.replace("/grid", "/archive"))
    app_user.get(grid.replace("/grid", "/nowhere"))
    ours = [record for record in caplog.records if not record.name.startswith(("http", "asyncio"))]
    assert any(record.msg.startswith("a request was refused") for record in ours)
    assert grid.partition("link=")[2] not in json.dumps([vars(line) for line in ours], default=str)
