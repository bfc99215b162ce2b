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
from tests.support.worker import IdleWorker
from worker.jobs.keys import job_key, owner_key, state_key

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


STATES = ("queued", "running", "finished", "failed", "cancelled")


def of_states(api: httpx.Client) -> dict[str, list[str]]:
    """Return the ids that listings of one state give, where there are any."""
    found = {state: list(pages(api, state=state)) for state in STATES}
    return {state: jobs for state, jobs in found.items() if jobs}


def in_each_state(api: httpx.Client, post: Post, worker: IdleWorker) -> dict[str, list[str]]:
    """Post a job for each state, and bring it there."""
    jobs = {state: post(count=1)["id"] for state in STATES}
    for state in ("running", "finished", "failed"):
        worker.start(jobs[state])
    worker.publish(jobs["finished"], [0])
    worker.fail(jobs["failed"], "not_finite", "not a number")
    api.post(f"/v1/jobs/{jobs['cancelled']}/cancel")
    return {state: [job] for state, job in jobs.items()}


def test_each_state_has_a_list_of_its_own(
    api: httpx.Client, redis: Redis, post: Post, worker: IdleWorker
) -> None:
    jobs = in_each_state(api, post, worker)
    assert of_states(api) == jobs
    for state in STATES:
        assert redis.zrange(state_key("local", state), 0, -1) == [jobs[state][0].encode()]
        assert redis.ttl(state_key("local", state)) >= redis.ttl(job_key(jobs[state][0]))
    for [job] in jobs.values():
        api.delete(f"/v1/jobs/{job}")
    assert not redis.keys("ddpm:jobs:*")


def test_a_listing_of_a_state_reads_no_more_records_than_it_returns(
    api: httpx.Client, redis: Redis, post: Post, worker: IdleWorker
) -> None:
    for _ in range(30):
        post(count=1)
    job = post(count=1)["id"]
    worker.start(job)
    assert records_read(redis, lambda: list(pages(api, state="failed"))) == 0
    assert records_read(redis, lambda: list(pages(api, state="running"))) == 1
    assert records_read(redis, lambda: api.get("/v1/jobs?state=queued&limit=5")) == 6


def records_read(redis: Redis, work: Callable[[], object]) -> int:
    """Count the hashes that the server gives whole while `work` is done."""
    redis.config_resetstat()
    work()
    return int(redis.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])


def test_jobs_of_versions_without_lists_of_states_are_found_and_listed(
    api: httpx.Client, redis: Redis, post: Post, worker: IdleWorker
) -> None:
    jobs = in_each_state(api, post, worker)
    redis.delete(*(state_key("local", state) for state in STATES))
    assert of_states(api) == jobs
    assert {state for state in STATES if redis.exists(state_key("local", state))} == set(STATES)
    assert records_read(redis, lambda: api.get("/v1/jobs?state=failed")) == 1


def test_a_job_that_an_old_worker_has_moved_is_put_where_it_belongs(
    api: httpx.Client, redis: Redis, post: Post
) -> None:
    job = post(count=1)["id"]
    redis.hset(job_key(job), "state", "running")
    assert list(pages(api, state="queued")) == []
    assert list(pages(api, state="running")) == [job]


def test_whoever_posts_puts_jobs_where_they_belong_and_forgets_those_that_are_gone(
    redis: Redis, post: Post
) -> None:
    gone, moved = post(count=1)["id"], post(count=1)["id"]
    redis.delete(job_key(gone))
    redis.hset(job_key(moved), "state", "running")
    new = post(count=1)["id"]
    listed = {name: redis.zrange(name, 0, -1) for name in redis.keys("ddpm:jobs:*")}
    assert listed == {
        owner_key("local").encode(): [moved.encode(), new.encode()],
        state_key("local", "queued").encode(): [new.encode()],
        state_key("local", "running").encode(): [moved.encode()],
    }


def test_neither_a_shorter_life_of_results_nor_a_clock_that_is_ahead_hides_a_job(
    settings: ApiSettings, redis: Redis
) -> None:
    long, short = (
        settings.model_copy(update={"results_ttl_s": seconds}) for seconds in (30 * 86_400, 1)
    )
    with serve(create_app(long)) as url, httpx.Client(base_url=url) as api:
        old = api.post("/v1/jobs", json={}).json()["id"]
        posted_at = time.time() - 29 * 86_400
        redis.hset(job_key(old), "created_at", posted_at)
        for key in redis.keys("ddpm:jobs:*"):
            redis.zadd(key, {old: posted_at})
        lives_s = redis.ttl(owner_key("local"))
    with serve(create_app(short)) as url, httpx.Client(base_url=url) as api:
        new = api.post("/v1/jobs", json={}).json()["id"]
        assert api.get(f"/v1/jobs/{old}").status_code == 200
        assert list(pages(api)) == list(pages(api, state="queued")) == [new, old]
    assert redis.ttl(owner_key("local")) >= lives_s - 60, "nor does the list end before the job"
