"""`Idempotency-Key`: a client that does not know whether its job was accepted posts it again.

There is one job then.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.support.problems import problem
from tests.support.worker import IdleWorker
from worker.jobs.keys import job_key

BODY = {"model": "tiny", "count": 2}
Post = Callable[..., httpx.Response]


@pytest.fixture
def post_keyed(api: httpx.Client) -> Post:
    def post_keyed(key: str = "a-key", **changes: Any) -> httpx.Response:
        return api.post("/v1/jobs", json=BODY | changes, headers={"Idempotency-Key": key})

    return post_keyed


def test_the_same_key_and_body_give_the_same_job(api: httpx.Client, post_keyed: Post):
    first, again = post_keyed(), post_keyed()
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json(), "the drawn seed is the same too"
    assert again.headers["location"] == first.headers["location"]
    assert len(api.get("/v1/jobs").json()["jobs"]) == 1


def test_a_default_that_is_written_out_is_the_same_body(post_keyed: Post):
    first = post_keyed().json()["id"]
    assert post_keyed(seed=None, start=0, priority="interactive").json()["id"] == first


def test_another_body_with_the_same_key_is_refused(api: httpx.Client, post_keyed: Post):
    post_keyed()
    body = problem(post_keyed(count=3), 422)
    assert body["type"].endswith("idempotency-key-reused")
    assert len(api.get("/v1/jobs").json()["jobs"]) == 1


def test_without_a_key_or_with_others_every_post_is_a_job(api: httpx.Client, post_keyed: Post):
    keyed = [post_keyed("a"), post_keyed("b")]
    unkeyed = [api.post("/v1/jobs", json=BODY) for _ in range(2)]
    assert len({response.json()["id"] for response in keyed + unkeyed}) == 4


def test_many_posts_at_once_are_one_job(api: httpx.Client, post_keyed: Post):
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: post_keyed(), range(24)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(api.get("/v1/jobs").json()["jobs"]) == 1


def test_a_key_is_found_when_the_job_has_ended_and_lives_as_long_as_its_record(
    redis: Redis, worker: IdleWorker, post_keyed: Post
):
    job = post_keyed().json()["id"]
    [key] = redis.keys("ddpm:idempotency:*")
    assert redis.expiretime(key) == pytest.approx(redis.expiretime(job_key(job)), abs=2)
    worker.start(job)
    worker.publish(job, [0, 1])
    assert (post_keyed().json()["id"], post_keyed().json()["state"]) == (job, "finished")
    assert redis.expiretime(key) == pytest.approx(redis.expiretime(job_key(job)), abs=2)


def test_a_deleted_job_takes_its_key_with_it(api: httpx.Client, redis: Redis, post_keyed: Post):
    first = post_keyed().json()
    api.delete(first["links"]["self"])
    assert redis.keys("ddpm:*") == []
    assert post_keyed().json()["id"] != first["id"]


def test_a_key_whose_job_has_expired_is_free_again(redis: Redis, post_keyed: Post):
    first = post_keyed().json()["id"]
    redis.delete(job_key(first))
    assert post_keyed(count=3).json()["id"] != first


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ä", "tab\there"])
def test_a_malformed_key_is_refused_with_the_remedy(post_keyed: Post, key: str):
    body = problem(post_keyed(key.encode("latin-1")), 422)
    assert "1 to 255" in body["detail"]
    assert body["errors"][0]["field"].lower() == "idempotency-key"


def test_a_key_of_255_characters_is_accepted(post_keyed: Post):
    assert post_keyed("~" * 255).status_code == 202
