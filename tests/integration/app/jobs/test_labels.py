"""Jobs of a class-conditional model: posted, drawn by workers of which one is lost, and read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from redis import Redis

from app.settings import ApiSettings
from models.checkpoints.catalog import Catalog, ClassesCard
from tests.support.cards import write_card_of
from tests.support.folders import write_model
from tests.support.parts import build_worker, let_lapse, run_to_the_end, take
from tests.support.server import create_fresh_app, serve
from worker.jobs.domain import drawn_label
from worker.jobs.keys import LEFT
from worker.jobs.reconciliation import Reconciler
from worker.process.loaded_model import LoadedModel

TINY = {"model": "tiny"}
CLASSES = ClassesCard(count=3, names=("cat", "dog", "7"), null=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny", classes=CLASSES)
    write_card_of("plain", root, default=False)
    write_card_of("rows", root, default=False, classes=ClassesCard(count=3))
    return root


@pytest.fixture(scope="module")
def models(root: Path) -> Iterator[list[LoadedModel]]:
    """The same model in two workers."""
    threads = torch.get_num_threads()
    catalog = Catalog.read(root)
    yield [LoadedModel(catalog, "tiny", torch.device("cpu"), 64, "fp32") for _ in range(2)]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def url(root: Path, shared_valkey_url: str) -> Iterator[str]:
    settings = ApiSettings(redis_url=shared_valkey_url, models_dir=root, max_open_image_steps=5000)
    with serve(create_fresh_app(settings)) as url:
        yield url


@pytest.fixture
def api(url: str, redis: Redis) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def post(api: httpx.Client, **body: Any) -> dict[str, Any]:
    response = api.post("/v1/jobs", json={"model": "tiny", "steps": 6, "seed": 5, **body})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def pngs(api: httpx.Client, job: dict[str, Any]) -> list[bytes]:
    return [api.get(image["url"]).content for image in job["images"]]


def drawn(redis: Redis, api: httpx.Client, model: LoadedModel, job: dict[str, Any]) -> list[bytes]:
    worker = build_worker(redis, model)
    while api.get(job["links"]["self"]).json()["state"] in ("queued", "running"):
        take(worker)
        run_to_the_end(worker)
    return pngs(api, job)


def recipe(png: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Image.open(io.BytesIO(png)).text["ddpm"])
    return found


def test_a_job_whose_worker_is_lost_draws_its_labels_to_the_byte(
    redis: Redis, api: httpx.Client, models: list[LoadedModel]
):
    body = {"count": 4, "labels": ["dog", 0, 2, "cat"], "guidance": 2}
    job = post(api, **body)
    assert [image["label"] for image in job["images"]] == [1, 0, 2, 0]
    assert (job["label"], job["guidance"]) == (None, 2.0)
    first, second = (build_worker(redis, model, cpu_clock=lambda: 0.0) for model in models)
    take(first)
    for _ in range(3):
        first.run_once()
    first.save_all()
    let_lapse(redis, *first.parts.shards.leases)
    take(second)
    assert models[1].engine.rows_done((f"{job['id']}-0", 0)) == 3
    run_to_the_end(second)
    models[0].engine.cancel([(f"{job['id']}-0", index) for index in range(4)])
    resumed = pngs(api, job)
    assert api.get(job["links"]["self"]).json()["state"] == "finished"
    assert resumed == drawn(redis, api, models[0], post(api, **body))
    for index, png in enumerate(resumed):
        made_by = recipe(png)
        assert (made_by["label"], made_by["guidance"]) == ([1, 0, 2, 0][index], 2.0)
        assert "labels" not in made_by
        assert [png] == drawn(redis, api, models[0], post(api, **made_by["request"]))


def test_events_of_images_say_their_labels(
    redis: Redis, api: httpx.Client, models: list[LoadedModel]
):
    job = post(api, count=2, labels=["7", "cat"])
    drawn(redis, api, models[0], job)
    lines = api.get(job["links"]["events"]).text.splitlines()
    data = [json.loads(line.removeprefix("data: ")) for line in lines if '"sha256"' in line]
    assert {event["index"]: event["label"] for event in data} == {0: 2, 1: 0}


def test_a_label_that_nobody_names_depends_on_seed_and_index_alone(api: httpx.Client):
    whole = [image["label"] for image in post(api, count=100)["images"]]
    assert whole == [drawn_label(5, index, 3) for index in range(100)]
    assert set(whole) == {0, 1, 2}
    part = post(api, count=30, start=50)
    assert [image["label"] for image in part["images"]] == whole[50:80]
    assert post(api, count=1, start=3)["label"] == whole[3]
    assert whole != [image["label"] for image in post(api, count=100, seed=6)["images"]]


def test_digits_are_a_number_unless_a_class_has_that_name(api: httpx.Client):
    assert [post(api, label=label)["label"] for label in ("7", "1", 1, 1.0, "cat")] == [
        2,
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"label": "cot"}, "label", "no class of 'tiny'; use one such as 'cat'"),
        ({"label": "zebra"}, "label", "use one such as 'cat', 'dog', '7', or a number below 3"),
        ({"label": "x" * 10_000}, "label", "is no class"),
        ({"label": 3}, "label", "label=3 is none of the 3 classes of 'tiny'; use 0 to 2."),
        ({"label": -1}, "label", "use 0 to 2"),
        ({"label": 10**40}, "label", "use 0 to 2"),
        ({"label": True}, "label", "a label is the name or the number of a class, not True"),
        ({"label": 1.5}, "label", "not 1.5"),
        ({"labels": [0, "horse"], "count": 2}, "labels.1", "no class"),
        ({"labels": [0, [1]], "count": 2}, "labels.1", "not [1]"),
        ({"labels": [0]}, "labels", "1 labels for count=2 images"),
        ({"labels": []}, "labels", "0 labels for count=2 images"),
        ({"labels": [0] * 2000}, "labels", "at most 1024"),
        ({"labels": [0, 1], "label": 0}, "labels", "send one of the two"),
        ({"label": 0, "model": "plain"}, "label", "'plain' has no classes; leave label out"),
        ({"labels": [0, 0], "model": "plain"}, "labels", "leave labels out"),
        ({"guidance": 2, "model": "plain"}, "guidance", "'plain' has no classes"),
        ({"guidance": 2, "model": "rows"}, "guidance", "'rows' lacks a null class"),
        ({"guidance": -0.5}, "guidance", "0 or more"),
        ({"guidance": 100.5}, "guidance", "100"),
        ({"guidance": "2"}, "guidance", "not a number"),
    ],
)
def test_labels_that_name_nothing_are_refused_and_nothing_is_posted(
    redis: Redis, api: httpx.Client, body: dict[str, Any], field: str, reason: str
):
    refused = api.post("/v1/jobs", json={"model": "tiny", "count": 2, "steps": 6, **body})
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["field"] == field
    assert reason in error["detail"]
    assert not redis.keys("*job*")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_guidance_that_is_no_number_is_refused(api: httpx.Client, number: str):
    text = f'{{"guidance": {number}}}'
    response = api.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422), response.text


def test_models_say_their_classes_and_unconditional_jobs_have_no_labels(api: httpx.Client):
    cards = {card["name"]: card["classes"] for card in api.get("/v1/models").json()["models"]}
    assert cards["tiny"] == {"count": 3, "names": ["cat", "dog", "7"], "null": 3}
    assert cards["plain"] is None
    job = post(api, model="plain", guidance=1)
    assert (job["label"], job["guidance"], job["images"][0]["label"]) == (None, None, None)


def test_a_guided_job_counts_twice(api: httpx.Client):
    post(api, count=10, label=0)
    used = api.get("/v1/me").json()["open_image_steps"]["used"]
    post(api, count=10, label=0, guidance=3)
    assert api.get("/v1/me").json()["open_image_steps"]["used"] == used + 2 * 60
    refused = api.post("/v1/jobs", json=TINY | {"count": 400, "steps": 10, "guidance": 0})
    assert "8000 (4000 of model 'tiny', of which each, guided, counts as 2)" in refused.text


def test_a_guided_job_whose_count_is_lost_is_counted_again_the_same(
    redis: Redis, api: httpx.Client
):
    job = post(api, count=70, label=0, guidance=3)
    counted = {job["id"].encode(): b"840 70 12 tiny local"}
    assert redis.hgetall(LEFT) == counted
    redis.delete(LEFT)
    for _ in range(3):
        Reconciler(redis).run_once()
    assert redis.hgetall(LEFT) == counted


def test_an_idempotency_key_knows_labels_and_guidance(api: httpx.Client):
    key = {"Idempotency-Key": "k"}
    first = api.post("/v1/jobs", json=TINY | {"labels": ["cat"], "guidance": 2}, headers=key)
    again = api.post("/v1/jobs", json=TINY | {"labels": ["cat"], "guidance": 2}, headers=key)
    assert first.json()["id"] == again.json()["id"]
    other = api.post("/v1/jobs", json=TINY | {"labels": ["dog"], "guidance": 2}, headers=key)
    assert other.status_code == 422
    drawn_first = api.post("/v1/jobs", json=TINY, headers={"Idempotency-Key": "d"})
    drawn_again = api.post("/v1/jobs", json=TINY, headers={"Idempotency-Key": "d"})
    assert drawn_first.json()["images"] == drawn_again.json()["images"]
