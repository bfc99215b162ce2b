"""Listings of jobs over HTTP: their order, their pages, and the jobs that are left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.server import serve
from worker.jobs.keys import job_key, owner_key

Post = Callable[..., dict[str, Any]]


def test_jobs_are_listed_newest_first_without_their_images(api: httpx.Client, post: Post) -> None:
    posted = [post(count=2)["id"] for _ in range(3)]
    page = api.get("/v1/jobs").json()
    assert [job["id"] for job in page["jobs"]] == posted[::-1]
    assert page["next_cursor"] is None
    assert "images" not in page["jobs"][0]


def test_a_listing_can_be_of_one_state(api: httpx.Client, post: Post) -> None:
    cancelled, _queued = post()["id"], post()["id"]
    api.post(f"/v1/jobs/{cancelled}/cancel")
    listed = api.get("/v1/jobs", params={"state": "cancelled"}).json()["jobs"]
    assert [job["id"] for job in listed] == [cancelled]


def pages(
    api: httpx.Client, between: Callable[[], object] = lambda: None, **params: Any
) -> Iterator[str]:
    while True:
        page = api.get("/v1/jobs", params=params).json()
        yield from [job["id"] for job in page["jobs"]]
        if page["next_cursor"] is None:
            return
        params["cursor"] = page["next_cursor"]
        between()


def test_pages_neither_repeat_nor_skip_a_job_while_others_are_posted(
    api: httpx.Client, post: Post
) -> None:
    posted = [post()["id"] for _ in range(7)]
    assert list(pages(api, between=post, limit=3)) == posted[::-1]


def test_the_last_page_says_so_even_where_it_is_full(api: httpx.Client, post: Post) -> None:
    for _ in range(4):
        post()
    first = api.get("/v1/jobs", params={"limit": 2}).json()
    last = api.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert (len(last["jobs"]), last["next_cursor"]) == (2, None)


def test_jobs_of_the_same_microsecond_are_all_listed(
    api: httpx.Client, redis: Redis, post: Post
) -> None:
    posted = [post()["id"] for _ in range(5)]
    redis.zadd(owner_key("local"), dict.fromkeys(posted, 1_795_348_800.000001))
    assert sorted(pages(api, limit=2)) == sorted(posted)


def test_a_listing_has_a_job_for_as_long_as_its_images_are_stored(
    settings: ApiSettings, redis: Redis
) -> None:
    month_s = 30 * 86_400
    with (
        serve(create_app(settings.model_copy(update={"results_ttl_s": month_s}))) as url,
        httpx.Client(base_url=url) as api,
    ):
        old = api.post("/v1/jobs", json={}).json()["id"]
        redis.zadd(owner_key("local"), {old: time.time() - month_s})
        new = api.post("/v1/jobs", json={}).json()["id"]
        assert list(pages(api)) == [new, old]
    assert redis.ttl(owner_key("local")) > month_s


def test_a_listing_leaves_out_what_has_expired(api: httpx.Client, redis: Redis, post: Post) -> None:
    present, expired = post()["id"], post()["id"]
    redis.delete(job_key(expired))
    assert list(pages(api)) == [present]
