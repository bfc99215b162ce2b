"""The bounds on open work.

They are exact, whatever is posted at once and however jobs end. Whoever is refused learns when to
come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from redis import Redis

from app.settings import ApiSettings
from tests.support.cards import write_card_of
from tests.support.problems import problem
from tests.support.server import create_fresh_app, serve
from tests.support.worker import IdleWorker
from worker.jobs.keys import LEFT, LOAD, job_key, open_key
from worker.jobs.reaper import Reaper

STEPS = 10
# 100 image-steps
JOB = {"model": "tiny", "count": 10, "steps": STEPS}


@pytest.fixture
def bounded(settings: ApiSettings, redis: Redis) -> Iterator[list[httpx.Client]]:
    """Clients of two APIs before one Redis, which queue 1000 image-steps, 500 of one owner."""
    bounds = settings.model_copy(
        update={"max_open_image_steps": 1000, "max_open_image_steps_per_key": 500}
    )
    with ExitStack() as stack:
        urls = [stack.enter_context(serve(create_fresh_app(bounds))) for _ in range(2)]
        yield [stack.enter_context(httpx.Client(base_url=url, timeout=10)) for url in urls]


def open_image_steps(redis: Redis) -> tuple[int, int]:
    """Return the image-steps left, as the sum over all jobs and as the sum over all owners."""
    left = redis.hvals(LEFT)
    return sum(int(text.split()[0]) for text in left), sum(map(int, redis.hvals(LOAD)))


def fill(redis: Redis, owner: str, image_steps: int) -> None:
    """Write what the store has when the owner has a job of this size open."""
    redis.hset(LEFT, "f" * 32, f"{image_steps} 1 1 tiny {owner}")
    redis.hset(LOAD, owner, image_steps)


def test_an_owner_may_have_so_much_open_and_no_more(bounded):
    api = bounded[0]
    for _ in range(5):
        assert api.post("/v1/jobs", json=JOB).status_code == 202
    refused = problem(api.post("/v1/jobs", json=JOB | {"count": 1}), 429)
    assert refused["type"].endswith("quota-exceeded")
    assert "500 image-steps left to run, and with this job's 10" in refused["detail"]


def test_all_owners_together_may_have_so_much_open_and_no_more(bounded, redis):
    fill(redis, "somebody else", 950)
    refused = problem(bounded[0].post("/v1/jobs", json=JOB), 429)
    assert refused["type"].endswith("queue-full")
    assert bounded[0].post("/v1/jobs", json=JOB | {"count": 5}).status_code == 202


def test_a_refused_job_leaves_nothing(bounded, redis):
    fill(redis, "somebody else", 1000)
    problem(bounded[0].post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "a"}), 429)
    assert {key.decode() for key in redis.keys("*")} == {LEFT, LOAD}


def test_a_refused_client_learns_when_the_workers_will_have_made_room(
    bounded, redis, worker: IdleWorker
):
    api = bounded[0]
    fill(redis, "somebody else", 960)
    assert refused_for_s(api) == 60, "nobody can say, without a worker"
    worker.announce(image_steps_per_s=5.0)
    assert refused_for_s(api) == 12, "60 image-steps too many, 5 a second"
    fill(redis, "local", 500)
    assert refused_for_s(api) == 40, "100 too many of one of two owners with half of the workers"


def refused_for_s(api: httpx.Client) -> int:
    """Return in how many seconds the client should try again."""
    response = api.post("/v1/jobs", json=JOB)
    detail = problem(response, 429)["detail"]
    assert f"try again in {response.headers['retry-after']} s" in detail
    return int(response.headers["retry-after"])


def test_a_job_that_would_not_fit_an_empty_queue_is_refused_for_good(bounded):
    body = problem(bounded[0].post("/v1/jobs", json=JOB | {"count": 51}), 422)
    assert body["errors"][0]["field"] == "count"
    assert "500 that one key may have" in body["detail"]


def test_processes_that_post_at_once_do_not_overshoot(bounded, redis):
    with ThreadPoolExecutor(8) as threads:
        posts = [threads.submit(bounded[i % 2].post, "/v1/jobs", json=JOB) for i in range(40)]
        answers = [post.result().status_code for post in posts]
    assert (answers.count(202), answers.count(429)) == (5, 35)
    assert open_image_steps(redis) == (500, 500)


def test_room_grows_with_every_step_that_is_done(bounded, redis, worker: IdleWorker):
    api = bounded[0]
    jobs = [api.post("/v1/jobs", json=JOB).json()["id"] for _ in range(5)]
    worker.start(jobs[0])
    worker.progress(jobs[0], 0, 3, 30)
    assert open_image_steps(redis) == (470, 470)
    worker.progress(jobs[0], 0, 2, 20)
    assert open_image_steps(redis) == (480, 480), "a lost worker's last steps are done again"
    assert api.post("/v1/jobs", json=JOB | {"count": 2}).status_code == 202
    assert api.post("/v1/jobs", json=JOB | {"count": 1}).status_code == 429


ENDS: dict[str, Callable[[httpx.Client, IdleWorker, str], Any]] = {
    "finished": lambda api, worker, job: worker.publish(job, range(10)),
    "failed": lambda api, worker, job: worker.fail(job, "not_finite", "not a number"),
    "cancelled": lambda api, worker, job: [api.post(f"/v1/jobs/{job}/cancel") for _ in range(2)],
    "deleted": lambda api, worker, job: [api.delete(f"/v1/jobs/{job}") for _ in range(2)],
    "cancelled, then deleted": lambda api, worker, job: (
        api.post(f"/v1/jobs/{job}/cancel"),
        api.delete(f"/v1/jobs/{job}"),
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_that_has_ended_is_counted_no_more_and_never_subtracted_twice(
    bounded, redis, worker, end
):
    api = bounded[0]
    job, other = (api.post("/v1/jobs", json=JOB).json()["id"] for _ in range(2))
    worker.start(job)
    worker.progress(job, 0, 9, 100)
    ENDS[end](api, worker, job)
    worker.progress(job, 0, 1, 10)
    worker.fail(job, "late", "too late")
    assert open_image_steps(redis) == (100, 100)
    api.delete(f"/v1/jobs/{other}")
    assert not redis.exists(LEFT, LOAD)


def test_a_job_whose_record_has_expired_is_counted_no_more(bounded, redis):
    gone, kept = (bounded[0].post("/v1/jobs", json=JOB).json()["id"] for _ in range(2))
    redis.delete(job_key(gone))
    Reaper(redis).run_once()
    assert open_image_steps(redis) == (100, 100)
    assert redis.zrange(open_key("interactive"), 0, -1) == [kept.encode()]


@pytest.fixture
def of_two_models(
    settings: ApiSettings, redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of an API that queues 1000 image-steps, of `tiny` or of `large`, which costs 12."""
    models_dir = write_card_of("tiny", tmp_path_factory.mktemp("models"))
    write_card_of("large", models_dir, default=False, gflop_per_image_step=7.1)
    changes = {
        "models_dir": models_dir,
        "max_open_image_steps": 1000,
        "max_open_image_steps_per_key": 500,
    }
    with (
        serve(create_fresh_app(settings.model_copy(update=changes))) as url,
        httpx.Client(base_url=url, timeout=10) as client,
    ):
        yield client


LARGE = {"model": "large", "count": 2, "steps": STEPS}


def test_an_image_step_of_a_model_counts_as_what_it_costs(of_two_models, redis) -> None:
    api = of_two_models
    assert api.post("/v1/jobs", json=LARGE).status_code == 202
    assert open_image_steps(redis) == (240, 240)
    assert api.post("/v1/jobs", json=JOB).status_code == 202
    assert open_image_steps(redis) == (340, 340)
    refused = problem(api.post("/v1/jobs", json=LARGE), 429)
    assert (
        "with this job's 240 (20 of model 'large', of which each counts as 12)"
        in (refused["detail"])
    )
    alone = problem(api.post("/v1/jobs", json=LARGE | {"count": 5}), 422)
    assert "600 (50 of model 'large', of which each counts as 12) image-steps" in alone["detail"]


def test_room_grows_and_is_given_back_by_what_image_steps_cost(
    of_two_models, redis, worker: IdleWorker
) -> None:
    job = of_two_models.post("/v1/jobs", json=LARGE).json()["id"]
    worker.start(job)
    worker.progress(job, 0, 3, 6)
    assert open_image_steps(redis) == (240 - 12 * 6,) * 2
    metrics = of_two_models.get("/metrics").text
    assert 'ddpm_waiting_image_steps{model="large"} 14.0' in metrics
    assert f"ddpm_open_image_steps {240.0 - 12 * 6}" in metrics
    worker.publish(job, range(2))
    assert not redis.exists(LEFT, LOAD)


def test_a_refused_client_waits_for_what_the_workers_do_of_such_image_steps(
    of_two_models, redis, worker: IdleWorker
) -> None:
    fill(redis, "local", 500)
    worker.announce(image_steps_per_s=5.0, models=("large",))
    assert refused_for_s(of_two_models) == 2, "100 too many, at 5 times 12 a second"


@pytest.fixture
def of_few_jobs(settings: ApiSettings, redis: Redis) -> Iterator[httpx.Client]:
    """A client of an API that lets one owner have three jobs, two of them open."""
    bounds = {"max_open_jobs_per_key": 2, "max_kept_jobs_per_key": 3}
    with (
        serve(create_fresh_app(settings.model_copy(update=bounds))) as url,
        httpx.Client(base_url=url, timeout=10) as client,
    ):
        yield client


def test_an_owner_may_have_so_many_jobs_open_and_so_many_kept(of_few_jobs) -> None:
    api = of_few_jobs
    jobs = [api.post("/v1/jobs", json=JOB).json()["id"] for _ in range(2)]
    refused = problem(api.post("/v1/jobs", json=JOB), 429)
    assert refused["type"].endswith("too-many-jobs")
    assert "you have 2 jobs open, and one key may have 2" in refused["detail"]
    for job in jobs:
        api.post(f"/v1/jobs/{job}/cancel")
    assert api.post("/v1/jobs", json=JOB).status_code == 202
    kept = problem(api.post("/v1/jobs", json=JOB), 429)
    assert "you have 3 jobs kept, and one key may have 3" in kept["detail"]
    assert api.get("/v1/me").json()["kept_jobs"] == {"most": 3, "used": 3, "left": 0}
    api.delete(f"/v1/jobs/{jobs[0]}")
    assert api.post("/v1/jobs", json=JOB).status_code == 202


def test_jobs_that_are_forgotten_leave_room_for_others(of_few_jobs, redis) -> None:
    jobs = [of_few_jobs.post("/v1/jobs", json=JOB).json()["id"] for _ in range(2)]
    for job in jobs:
        of_few_jobs.post(f"/v1/jobs/{job}/cancel")
    assert of_few_jobs.post("/v1/jobs", json=JOB).status_code == 202
    redis.delete(job_key(jobs[0]))
    assert of_few_jobs.post("/v1/jobs", json=JOB).status_code == 202
