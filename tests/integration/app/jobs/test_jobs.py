"""The life of a job over HTTP: posted, read, cancelled, deleted."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.support.processes import later
from tests.support.worker import IdleWorker, png_of
from worker.jobs.domain import Priority, Shard
from worker.jobs.keys import COUNTS

Post = Callable[..., dict[str, Any]]


def keys(redis: Redis) -> set[bytes]:
    # These two are of no job, and stay.
    return set(redis.keys("*")) - {b"rq:queues", COUNTS.encode()}


def shards_waiting(redis: Redis) -> list[str]:
    queues = [f"rq:queue:{priority}:tiny:local" for priority in Priority]
    return [shard.decode() for queue in queues for shard in redis.lrange(queue, 0, -1)]


def test_a_job_is_accepted_and_says_where_it_is(api: httpx.Client) -> None:
    response = api.post("/v1/jobs", json={"model": "tiny", "count": 3, "seed": 7, "steps": 50})
    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    expected = {"state": "queued", "count": 3, "seed": 7, "steps": 50, "start": 0}
    assert job | expected == job
    assert api.get(response.headers["location"]).json() == job


def test_fields_left_out_get_the_models_defaults_and_a_drawn_seed(post: Post) -> None:
    one, other = post(), post(model=None, seed=None)
    defaults = {"model": "tiny", "sampler": "ddpm", "steps": 100, "variance": "fixed_small"}
    expected = defaults | {"eta": None, "count": 1, "priority": "interactive"}
    assert one | expected == one
    assert 0 <= one["seed"] < 2**53
    assert one["seed"] != other["seed"]


def test_times_are_rfc_3339_in_utc(post: Post) -> None:
    created = datetime.fromisoformat(post()["created_at"])
    assert created.utcoffset() == timedelta(0)
    assert abs(created.timestamp() - time.time()) < 10


def test_a_job_of_200_images_is_four_shards_with_the_whole_recipe(redis: Redis, post: Post) -> None:
    job = post(count=200, start=5, sampler="ddim", eta=0.5, seed=9)
    assert shards_waiting(redis) == [f"{job['id']}-{number}" for number in range(4)]
    shards = [_shard(redis, id) for id in shards_waiting(redis)]
    assert [index for shard in shards for index in shard.indices] == list(range(5, 205))
    assert {(s.recipe.sampler, s.recipe.eta, s.recipe.seed, s.recipe.weights) for s in shards} == {
        ("ddim", 0.5, 9, "ab" * 32)
    }


def _shard(redis: Redis, id: str) -> Shard:
    from rq.job import Job
    from rq.serializers import JSONSerializer

    return Shard.from_json(Job.fetch(id, connection=redis, serializer=JSONSerializer).kwargs)


def test_polling_shows_the_least_advanced_image_and_the_share_of_work_done(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=100, steps=10)["id"]
    worker.start(job)
    worker.progress(job, 0, 4, 64 * 4)
    assert api.get(f"/v1/jobs/{job}").json()["progress"] | {"images_per_s": None} == {
        "step": 0,
        "steps": 10,
        "images_done": 0,
        "fraction": 0.256,
        "images_per_s": None,
    }
    worker.progress(job, 1, 2, 36 * 2)
    now = api.get(f"/v1/jobs/{job}").json()
    assert (now["progress"]["step"], now["progress"]["fraction"]) == (2, 0.328)
    assert now["progress"]["images_per_s"] > 0
    assert now["queue"] is None


def test_every_image_says_how_far_it_is(api: httpx.Client, worker: IdleWorker, post: Post) -> None:
    job = post(count=66, start=10)["id"]
    worker.start(job)
    worker.progress(job, 0, 1, 64)
    worker.publish(job, [11])
    images = api.get(f"/v1/jobs/{job}").json()["images"]
    assert [image["index"] for image in images] == list(range(10, 76))
    states = [images[k]["state"] for k in (0, 1, 63, 64, 65)]
    assert states == ["running", "finished", "running", "queued", "queued"]
    assert images[1]["sha256"] == hashlib.sha256(png_of(11)).hexdigest()
    assert api.get(images[1]["url"]).content == png_of(11)


def test_the_last_image_finishes_the_job(api: httpx.Client, worker: IdleWorker, post: Post) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    worker.publish(job, [0, 1])
    now = api.get(f"/v1/jobs/{job}").json()
    assert now["state"] == "finished"
    expected = {"step": 100, "fraction": 1.0, "images_done": 2}
    assert now["progress"] | expected == now["progress"]
    assert now["created_at"] <= now["started_at"] <= now["finished_at"]


def test_a_failed_job_says_why(api: httpx.Client, worker: IdleWorker, post: Post) -> None:
    job = post()["id"]
    worker.fail(job, "workers_lost", "three workers were lost")
    now = api.get(f"/v1/jobs/{job}").json()
    assert now["state"] == "failed"
    assert now["error"] == {"code": "workers_lost", "message": "three workers were lost"}


def test_a_place_in_the_queue_counts_the_jobs_before_it_and_bulk_comes_last(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    bulk, first, second = post(priority="bulk"), post(), post()
    assert bulk["queue"] == {"position": 0, "eta_s": None}
    assert (first["queue"]["position"], second["queue"]["position"]) == (0, 1)
    assert api.get(f"/v1/jobs/{bulk['id']}").json()["queue"]["position"] == 2


def eta_s(api: httpx.Client, job: dict[str, Any]) -> float:
    return api.get(f"/v1/jobs/{job['id']}").json()["queue"]["eta_s"]


def test_an_interactive_job_waits_for_those_with_less_left_and_shares_with_bulk(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    worker.announce(image_steps_per_s=100.0)
    first, second, last = (post(count=count, steps=100) for count in (10, 60, 20))
    assert last["queue"] == {"position": 2, "eta_s": 10.0 + 20.0}
    assert eta_s(api, second) == 10.0 + 20.0 + 60.0
    worker.start(first["id"])
    worker.progress(first["id"], 0, 50, 500)
    assert eta_s(api, last) == 5.0 + 20.0, "what runs shares the engine, with what is left of it"
    post(count=1024, steps=100, priority="bulk")
    assert eta_s(api, last) == pytest.approx((5.0 + 20.0) * 8 / 7, abs=0.1)


def test_a_job_of_several_parts_waits_for_the_bulk_work_before_it(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    worker.announce(image_steps_per_s=100.0)
    post(count=100, steps=100, priority="bulk")
    job = post(count=70, steps=100)
    assert job["queue"]["eta_s"] == 100.0 + 70.0
    post(count=100, steps=100, priority="bulk")
    assert eta_s(api, job) == 100.0 + 70.0, "what came later comes later"


def test_a_bulk_job_waits_until_workers_have_room_for_it(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    worker.announce(image_steps_per_s=100.0)
    first, bulk = (post(count=count, steps=100, priority="bulk") for count in (10, 1))
    assert eta_s(api, bulk) == 9.0 + 1.0, "a worker that steps one image holds two"
    worker.start(first["id"])
    worker.progress(first["id"], 0, 50, 500)
    assert eta_s(api, bulk) == 4.0 + 1.0
    post(count=1, steps=100)
    assert eta_s(api, bulk) == 4.0 + 1.0 + 1.0
    post(count=64, steps=100)
    assert eta_s(api, bulk) == 8 * (4.0 + 1.0), "bulk work keeps one place in eight"


def test_there_is_no_estimate_without_a_live_worker_that_has_the_model(
    worker: IdleWorker, post: Post
) -> None:
    worker.announce(lives_s=-1)
    assert post()["queue"]["eta_s"] is None
    worker.announce(models=("other",))
    assert post()["queue"]["eta_s"] is None


def test_cancelling_takes_the_shards_out_of_the_queue_and_keeps_what_is_finished(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(count=200)["id"]
    worker.start(job)
    worker.publish(job, [3])
    response = api.post(f"/v1/jobs/{job}/cancel")
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert shards_waiting(redis) == []
    assert redis.keys("rq:job:*") == []
    assert api.get(f"/v1/jobs/{job}/images/3").status_code == 200
    assert api.get(f"/v1/jobs/{job}/images/4").status_code == 409
    assert not worker.progress(job, 0, 1, 1)


def test_cancelling_signals_the_worker_that_runs_a_shard(
    api: httpx.Client, redis: Redis, post: Post
) -> None:
    job = post()["id"]
    redis.hset(f"rq:job:{job}-0", "status", "started")
    api.post(f"/v1/jobs/{job}/cancel")
    assert redis.hget(f"rq:job:{job}-0", "status") == b"canceled"


def test_cancelling_a_job_that_has_ended_changes_nothing(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.publish(job, [0])
    before = api.get(f"/v1/jobs/{job}").json()
    response = api.post(f"/v1/jobs/{job}/cancel")
    assert (response.status_code, response.json()) == (200, before)


@pytest.mark.parametrize("state", ["queued", "running", "finished", "failed", "cancelled"])
def test_a_deleted_job_leaves_no_key_and_cannot_come_back(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, state: str
) -> None:
    job = post(count=70)["id"]
    if state != "queued":
        worker.start(job)
        worker.progress(job, 0, 1, 64)
        worker.publish(job, range(70 if state == "finished" else 5))
    if state == "failed":
        worker.fail(job, "nan", "not a number")
    if state == "cancelled":
        api.post(f"/v1/jobs/{job}/cancel")
    assert api.delete(f"/v1/jobs/{job}").status_code == 204
    worker.start(job)
    assert not worker.progress(job, 0, 2, 128)
    assert not worker.publish(job, [6])
    assert keys(redis) == set()
    assert api.delete(f"/v1/jobs/{job}").status_code == 404
    assert api.get(f"/v1/jobs/{job}").status_code == 404


def test_a_deletion_ends_the_waiting(api: httpx.Client, url: str, post: Post) -> None:
    job = post()["id"]
    with later(0.2, httpx.delete, f"{url}/v1/jobs/{job}"):
        # The client gives up after 10 s.
        assert api.get(f"/v1/jobs/{job}", params={"wait": 60}).status_code == 404


def test_every_key_of_a_job_has_a_time_to_live(
    redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    worker.publish(job, [0, 1])
    redis.delete("ddpm:rotation:interactive:tiny")  # goes with the queue's last shard
    ours = [key for key in keys(redis) if key.startswith(b"ddpm:") and redis.ttl(key) == -1]
    assert ours == []
