"""Images over HTTP, wherever they lie, and their removal from a results store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from fsspec.core import url_to_fs
from PIL import Image
from redis import Redis

from app.main import create_app
from app.settings import ApiSettings
from tests.support.processes import eventually
from tests.support.s3 import BUCKET, s3_server
from tests.support.server import serve
from tests.support.worker import IdleWorker, png_of
from worker.jobs.domain import Recipe, Shard
from worker.jobs.keys import EXPIRING, job_key, png_key
from worker.jobs.policy import UNFINISHED_TTL_S
from worker.process.job_writer import JobWriter, Start
from worker.process.results_cleanup import ResultsCleanup
from worker.results.store import ResultsStore, StoreFault
from worker.results.url import open_store

Post = Callable[..., dict[str, Any]]
# Its shards are held by no lease.
pytestmark = pytest.mark.usefixtures("without_reconciliation")


@pytest.fixture(scope="module", params=["redis", "file", "s3"])
def results_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "s3":
        with s3_server():
            yield f"s3://{BUCKET}/prefix"
    else:
        yield f"file://{tmp_path_factory.mktemp('results')}" if request.param == "file" else ""


@pytest.fixture(scope="module")
def external(results_url: str) -> str:
    if not results_url:
        pytest.skip("is about results stores; Redis has its own times to live")
    return results_url


@pytest.fixture(scope="module")
def settings(shared_valkey_url: str, models_dir: Path, results_url: str) -> ApiSettings:
    return ApiSettings(redis_url=shared_valkey_url, models_dir=models_dir, results_url=results_url)


@pytest.fixture(scope="module")
def url(settings: ApiSettings, results_url: str) -> Iterator[str]:
    """An API that has read an image before.

    Its client of S3 is made at the first read, and on a busy machine that takes longer than the
    API waits for a store.
    """
    with serve(create_app(settings)) as url, Redis.from_url(str(settings.redis_url)) as redis:
        job = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
        worker = IdleWorker(redis, open_store(results_url))
        worker.start(job)
        worker.publish(job, [0])
        image = f"{url}/v1/jobs/{job}/images/0"
        eventually(lambda: httpx.get(image, timeout=10).is_success, 60, "the store is read")
        yield url


@pytest.fixture
def store(results_url: str) -> ResultsStore:
    return open_store(results_url)


@pytest.fixture
def worker(redis: Redis, store: ResultsStore) -> IdleWorker:
    return IdleWorker(redis, store)


def objects(url: str) -> list[str]:
    """Return the paths of all objects in a results store, from its root."""
    file_system, root = url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    if not file_system.exists(root):
        return []
    return sorted(path.removeprefix(root) for path in file_system.find(root))


def clear(redis: Redis, store: ResultsStore) -> None:
    """Remove what is due, as a worker does."""
    ResultsCleanup(redis, store, Event()).run_once()


def end_long_ago(redis: Redis, job: str) -> None:
    """Let the job's images be due for removal since yesterday."""
    long_ago = time.time() - 2 * 86_400
    redis.hset(job_key(job), "finished_at", long_ago)
    redis.zadd(EXPIRING, {job: long_ago + 86_400})


def test_an_image_is_unfinished_then_there_with_its_etag_and_head(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=2, start=5)["id"]
    path = f"/v1/jobs/{job}/images/5"
    assert api.get(path).status_code == 409
    worker.start(job)
    worker.publish(job, [5])
    got = api.get(path)
    assert (got.status_code, got.content, got.headers["content-type"]) == (
        200,
        png_of(5),
        "image/png",
    )
    assert "immutable" in got.headers["cache-control"]
    head = api.head(path)
    assert (head.status_code, head.content, int(head.headers["content-length"])) == (
        200,
        b"",
        len(png_of(5)),
    )
    again = api.get(path, headers={"If-None-Match": got.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert [api.get(f"/v1/jobs/{job}/images/{index}").status_code for index in (6, 7)] == [409, 404]


def test_the_contact_sheet_shows_what_is_finished(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=5, start=10)["id"]
    worker.start(job)
    worker.publish(job, [10, 14])
    sheet = Image.open(BytesIO(api.get(f"/v1/jobs/{job}/grid").content))
    centres = [
        sheet.getpixel((6 + 10 * column, 6 + 10 * row)) for row in range(2) for column in range(3)
    ]
    assert centres == [10, 255, 255, 255, 14, 255]


def test_the_archive_has_what_is_finished(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=2, start=9)["id"]
    worker.start(job)
    worker.publish(job, [9, 10])
    with ZipFile(BytesIO(api.get(f"/v1/jobs/{job}/archive").content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "09.png": png_of(9),
            "10.png": png_of(10),
        }


def test_a_cancelled_job_keeps_its_finished_images(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=3)["id"]
    worker.start(job)
    worker.publish(job, [1])
    api.post(f"/v1/jobs/{job}/cancel")
    assert api.get(f"/v1/jobs/{job}/images/1").content == png_of(1)


def test_pngs_lie_in_one_place_only(
    redis: Redis, worker: IdleWorker, post: Post, results_url: str
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    worker.publish(job, [0, 1])
    assert redis.exists(png_key(job)) == (0 if results_url else 1)
    if results_url:
        assert [path for path in objects(results_url) if job in path] == [
            f"/{job}/0.png",
            f"/{job}/1.png",
        ]


@pytest.mark.parametrize("state", ["queued", "running", "finished"])
def test_a_deleted_job_leaves_neither_key_nor_object(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post, results_url: str, state: str
) -> None:
    job = post(count=2)["id"]
    if state != "queued":
        worker.start(job)
        worker.publish(job, [0, 1] if state == "finished" else [0])
    assert api.delete(f"/v1/jobs/{job}").status_code == 204
    assert not [key for key in redis.keys("*") if job in key.decode()]
    assert not results_url or not [path for path in objects(results_url) if job in path]
    assert api.get(f"/v1/jobs/{job}/images/0").status_code == 404


def test_images_past_their_time_are_410_and_their_objects_go(
    api: httpx.Client,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    store: ResultsStore,
    external: str,
) -> None:
    job, other = post(count=2)["id"], post()["id"]
    for each, images in ((job, [0, 1]), (other, [0])):
        worker.start(each)
        worker.publish(each, images)
    clear(redis, store)
    assert api.get(f"/v1/jobs/{job}/images/1").status_code == 200
    end_long_ago(redis, job)
    paths = ("images/0", "images/1/preview", "grid", "archive")

    def statuses() -> list[int]:
        return [api.get(f"/v1/jobs/{job}/{rest}").status_code for rest in paths]

    assert statuses() == [410] * 4, "before a worker has removed anything"
    assert {image["state"] for image in api.get(f"/v1/jobs/{job}").json()["images"]} == {"expired"}
    clear(redis, store)
    assert statuses() == [410] * 4
    assert [path for path in objects(external) if job in path or other in path] == [
        f"/{other}/0.png"
    ]
    assert redis.zrange(EXPIRING, 0, -1) == [other.encode()]


def test_a_job_that_never_ends_is_removed_when_its_record_is_gone(
    redis: Redis, worker: IdleWorker, post: Post, external: str
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    due = redis.zscore(EXPIRING, job)
    assert due == pytest.approx(time.time() + UNFINISHED_TTL_S, abs=10)


@pytest.mark.usefixtures("external")
def test_a_claim_belongs_to_one_worker_until_it_fails(redis: Redis, store: ResultsStore) -> None:
    store.put("job", [(0, b"zero")])
    redis.zadd(EXPIRING, {"job": time.time() - 1})

    class Broken:
        external = True

        def remove_all(self, job: str) -> None:
            clear(redis, store)  # another worker removes what is due meanwhile
            raise StoreFault("away")

    with pytest.raises(StoreFault):
        clear(redis, Broken())
    assert store.get("job", [0]) == [b"zero"], "the other worker was not to have it"
    assert redis.zscore(EXPIRING, "job") > time.time()
    redis.zadd(EXPIRING, {"job": time.time() - 1})  # the claim is over
    clear(redis, store)
    assert store.get("job", [0]) == [None]
    assert not redis.exists(EXPIRING)


def test_an_entry_that_is_set_anew_while_it_is_claimed_stays(
    redis: Redis, store: ResultsStore, external: str
) -> None:
    class Slow:
        external = True

        def remove_all(self, job: str) -> None:
            redis.zadd(EXPIRING, {job: 4e9})

    redis.zadd(EXPIRING, {"job": 1})
    clear(redis, Slow())
    assert redis.zscore(EXPIRING, "job") == 4e9


def shard_of(post: Post, **request: Any) -> Shard:
    job = post(**request)
    recipe = Recipe("tiny", "ab" * 32, "ddpm", 10, "fixed_small", 0.0, 1)
    return Shard(job["id"], 0, 0, job["count"], "local", "interactive", recipe)


def test_a_late_write_to_a_cancelled_job_is_taken_back(
    api: httpx.Client, redis: Redis, post: Post, store: ResultsStore, results_url: str
) -> None:
    shard, results = shard_of(post, count=3), JobWriter(redis, store)
    results.start(shard, 1)
    assert results.publish(shard, [(0, png_of(0))])
    api.post(f"/v1/jobs/{shard.job}/cancel")
    assert not results.publish(shard, [(0, png_of(0)), (1, png_of(1))])
    assert [api.get(f"/v1/jobs/{shard.job}/images/{index}").status_code for index in range(3)] == [
        200,
        409,
        409,
    ]
    if results_url:
        assert [path for path in objects(results_url) if shard.job in path] == [
            f"/{shard.job}/0.png"
        ]


def test_a_late_write_to_a_deleted_job_leaves_nothing(
    api: httpx.Client, redis: Redis, post: Post, store: ResultsStore, results_url: str
) -> None:
    shard, results = shard_of(post, count=3), JobWriter(redis, store)
    results.start(shard, 1)
    api.delete(f"/v1/jobs/{shard.job}")
    assert not results.publish(shard, [(0, png_of(0))])
    assert not [key for key in redis.keys("*") if shard.job in key.decode()]
    assert not results_url or not [path for path in objects(results_url) if shard.job in path]


def test_a_write_that_is_repeated_takes_nothing_back(
    api: httpx.Client, redis: Redis, post: Post, store: ResultsStore
) -> None:
    shard, results = shard_of(post, count=1), JobWriter(redis, store)
    results.start(shard, 1)
    assert results.publish(shard, [(0, png_of(0))])
    assert not results.publish(shard, [(0, png_of(0))])
    assert api.get(f"/v1/jobs/{shard.job}/images/0").content == png_of(0)


def test_a_worker_killed_between_object_and_hash_leaves_the_image_to_the_next(
    api: httpx.Client, redis: Redis, post: Post, store: ResultsStore, external: str
) -> None:
    shard, next_worker = shard_of(post, count=1), JobWriter(redis, store)
    next_worker.start(shard, 1)
    store.put(shard.job, [(0, png_of(0))])
    assert api.get(f"/v1/jobs/{shard.job}").json()["state"] == "running"
    assert api.get(f"/v1/jobs/{shard.job}/images/0").status_code == 409
    assert next_worker.start_all([Start(shard, 1)])[0].finished == set()
    next_worker.publish(shard, [(0, png_of(0))])
    assert api.get(f"/v1/jobs/{shard.job}").json()["state"] == "finished"
    assert api.get(f"/v1/jobs/{shard.job}/images/0").content == png_of(0)


def test_objects_that_a_late_worker_puts_back_after_their_time_are_due_again(
    redis: Redis, post: Post, store: ResultsStore, external: str
) -> None:
    shard, results = shard_of(post, count=1), JobWriter(redis, store)
    results.start(shard, 1)
    results.publish(shard, [(0, png_of(0))])
    end_long_ago(redis, shard.job)
    clear(redis, store)
    assert not results.publish(shard, [(0, png_of(0))])
    clear(redis, store)
    assert not [path for path in objects(external) if shard.job in path]


def test_a_late_worker_of_other_bits_changes_no_object_that_is_finished(
    api: httpx.Client, redis: Redis, post: Post, store: ResultsStore
) -> None:
    """The worker lost its lease, and another kind of machine has drawn the image meanwhile."""
    shard, results = shard_of(post, count=2), JobWriter(redis, store)
    results.start(shard, 1)
    assert results.publish(shard, [(0, png_of(0))])
    assert results.publish(shard, [(0, png_of(7)), (1, png_of(1))])
    assert not results.publish(shard, [(0, png_of(7)), (1, png_of(8))])
    assert [api.get(f"/v1/jobs/{shard.job}/images/{index}").content for index in (0, 1)] == [
        png_of(0),
        png_of(1),
    ]


def test_an_object_that_was_changed_is_never_served(
    api: httpx.Client, worker: IdleWorker, post: Post, external: str
) -> None:
    job = post(count=2)["id"]
    worker.start(job)
    worker.publish(job, [0, 1])
    worker.store.put(job, [(0, png_of(0)[:-20])])
    assert [api.get(f"/v1/jobs/{job}/images/{index}").status_code for index in (0, 1)] == [410, 200]
