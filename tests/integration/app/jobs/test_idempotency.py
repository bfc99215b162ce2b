"""`Idempotency-Key`: a client that does not know whether its job was accepted posts it again.

There is one job then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.schemas.jobs import JobRequest
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.server import serve
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


def test_a_job_is_found_after_a_bound_was_lowered_below_it(
    settings: ApiSettings, redis: Redis, post_keyed: Post
):
    job = post_keyed(steps=10).json()["id"]
    bounds = {"max_open_image_steps_per_key": 5, "max_open_jobs_per_key": 1}
    lowered = settings.model_copy(update=bounds)
    with serve(create_app(lowered)) as url, httpx.Client(base_url=url) as api:
        headers = {"Idempotency-Key": "a-key"}
        again = api.post("/v1/jobs", json=BODY | {"steps": 10}, headers=headers)
        assert (again.status_code, again.json()["id"]) == (202, job)
        other = api.post("/v1/jobs", json=BODY | {"steps": 11}, headers=headers)
        assert problem(other, 422)["type"].endswith("idempotency-key-reused")
        new = api.post("/v1/jobs", json=BODY | {"steps": 10}, headers={"Idempotency-Key": "b"})
        assert problem(new, 422)["errors"][0]["field"] == "count"


def test_a_key_of_a_version_that_hashed_all_fields_is_found(redis: Redis, post_keyed: Post):
    job = post_keyed(start=0, eta=0.0, sampler="ddim").json()["id"]
    [key] = redis.keys("ddpm:idempotency:*")
    request = JobRequest.model_validate(BODY | {"sampler": "ddim", "eta": 0.0})
    # Fields that came later were in no such hash.
    before = request.model_dump_json(exclude={"label", "labels", "guidance"})
    redis.set(key, f"{job} {sha256(before.encode()).hexdigest()}")
    assert post_keyed(sampler="ddim", eta=0.0).json()["id"] == job
    problem(post_keyed(sampler="ddim", eta=1.0), 422)


@pytest.mark.parametrize(
    "changes",
    [
        {"tiling": True, "border": [1, {"wide": None}]},
        {"count": 5000},
        {"sampler": "euler"},
        {"sampler": "euler", "eta": 0},
        {"steps": "many", "start": 3.0},
    ],
)
def test_a_job_is_found_by_its_key_although_its_body_is_refused_by_now(
    redis: Redis, post_keyed: Post, changes: dict[str, Any]
) -> None:
    posted = post_keyed()
    (entry,) = redis.scan_iter("ddpm:idempotency:*")
    # As an earlier version has kept it, which took such a body.
    kept = BODY | changes | ({"start": 3} if "start" in changes else {})
    kept |= {"eta": 0.0} if "eta" in changes else {}
    text = json.dumps(kept, sort_keys=True)
    redis.set(entry, f"{posted.json()['id']} {sha256(text.encode()).hexdigest()}")
    again = post_keyed(**changes, priority="interactive", seed=None)
    assert again.status_code == 202
    assert again.json() == posted.json()
    assert again.headers["location"] == posted.headers["location"]
    assert problem(post_keyed(**changes, seed=8), 422)["type"].endswith("idempotency-key-reused")
    assert problem(post_keyed("b", **changes), 422)["type"].endswith("invalid-request")


def test_a_refused_body_with_a_key_that_has_posted_nothing_is_refused_as_without(
    api: httpx.Client, post_keyed: Post
) -> None:
    deep: Any = None
    for _ in range(300):
        deep = [deep]
    for changes in ({"count": 0}, {"deep": deep}, {f"f{i}": i for i in range(2000)}):
        said = problem(post_keyed(**changes), 422)
        assert said == problem(api.post("/v1/jobs", json=BODY | changes), 422)


def test_a_fingerprint_is_of_what_was_sent_and_not_of_fields_that_others_may_send(
    redis: Redis, post_keyed: Post
):
    post_keyed(seed=None, start=0)
    [key] = redis.keys("ddpm:idempotency:*")
    sent = b'{"count": 2, "model": "tiny"}'
    assert redis.get(key).split()[1].decode() == sha256(sent).hexdigest()


def test_a_post_beside_the_deletion_of_its_job_is_accepted(api: httpx.Client, post_keyed: Post):
    def delete(job: str) -> int:
        return api.delete(f"/v1/jobs/{job}").status_code

    with ThreadPoolExecutor(8) as threads:
        for _ in range(40):
            job = post_keyed().json()["id"]
            deleted = threads.submit(delete, job)
            answers = [threads.submit(post_keyed) for _ in range(4)]
            assert {answer.result().status_code for answer in answers} == {202}
            assert deleted.result() == 204
