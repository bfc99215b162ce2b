"""PNGs and contact sheets over HTTP: when they are there, and how long clients may cache them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from tests.support.worker import IdleWorker, png_of
from worker.jobs.keys import png_key

Post = Callable[..., dict[str, Any]]


def test_an_image_is_cached_for_ever(api: httpx.Client, worker: IdleWorker, post: Post) -> None:
    job = post()["id"]
    worker.start(job)
    worker.publish(job, [0])
    response = api.get(f"/v1/jobs/{job}/images/0")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'


@pytest.mark.parametrize("tags", ["{}", '"other", {}', "W/{}", "*"])
def test_an_image_that_the_client_has_is_not_sent_again(
    api: httpx.Client, worker: IdleWorker, post: Post, tags: str
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.publish(job, [0])
    path = f"/v1/jobs/{job}/images/0"
    response = api.get(path, headers={"If-None-Match": tags.format(api.get(path).headers["etag"])})
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["etag"]


def test_head_describes_an_image_without_sending_it(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    worker.publish(job, [0])
    response = api.head(f"/v1/jobs/{job}/images/0")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == len(png_of(0))


def test_an_image_is_unknown_then_unfinished_then_there_then_expired(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(count=2, start=5)["id"]

    def status(index: int) -> int:
        return api.get(f"/v1/jobs/{job}/images/{index}").status_code

    assert [status(index) for index in (0, 4, 5, 6, 7)] == [404, 404, 409, 409, 404]
    worker.start(job)
    worker.publish(job, [5, 6])
    assert [status(index) for index in (5, 6)] == [200, 200]
    redis.delete(png_key(job))
    assert [status(index) for index in (5, 6)] == [410, 410]
    assert {image["state"] for image in api.get(f"/v1/jobs/{job}").json()["images"]} == {"expired"}
    assert api.get(f"/v1/jobs/{job}/grid").status_code == 410


def test_the_contact_sheet_has_finished_images_in_their_places_and_blanks(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post(count=5, start=10)["id"]
    assert api.get(f"/v1/jobs/{job}/grid").status_code == 409
    worker.start(job)
    worker.publish(job, [10, 14])
    response = api.get(f"/v1/jobs/{job}/grid")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "no-cache"
    sheet = Image.open(BytesIO(response.content))
    assert sheet.size == (2 + 3 * 10, 2 + 2 * 10)
    centres = [
        sheet.getpixel((6 + 10 * column, 6 + 10 * row)) for row in range(2) for column in range(3)
    ]
    assert centres == [10, 255, 255, 255, 14, 255]


def test_a_contact_sheet_is_cached_for_ever_only_if_it_is_final_and_whole(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(count=3)["id"]

    def caching() -> str:
        return api.get(f"/v1/jobs/{job}/grid").headers["cache-control"]

    worker.start(job)
    worker.publish(job, [0, 1])
    assert caching() == "no-cache"
    worker.publish(job, [2])
    assert caching() == "private, max-age=31536000, immutable"
    redis.hdel(png_key(job), "1")
    assert caching() == "no-cache"
