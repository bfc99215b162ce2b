"""Jobs from a POST to PNGs, through real processes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from base64 import b64decode
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from models.checkpoints import diffusers_format
from models.checkpoints.catalog import SHIPPED
from models.checkpoints.residual_variance import ResidualVariance
from models.diffusion.plans import compile_plan
from models.diffusion.sampling import sample, to_bytes
from tests.e2e.conftest import Service
from tests.support import sse
from tests.support.processes import eventually
from worker.backends.served_network import ServedNetwork
from worker.jobs.keys import COUNTS

# Names and counts, which do not grow with the number of jobs.
CONFIGURATION = {"rq:queues", "rq:workers", COUNTS}

pytestmark = pytest.mark.timeout(400)


def picture(png: bytes) -> Image.Image:
    return Image.open(BytesIO(png))


def test_a_job_goes_in_and_its_pictures_come_out(service: Service) -> None:
    job = service.post(count=5, seed=11, steps=20)
    ended = service.finished(job["id"])
    progress = ended["progress"]
    assert (progress["step"], progress["steps"]) == (20, 20)
    assert (progress["images_done"], progress["fraction"]) == (5, 1.0)
    pngs = [service.http.get(image["url"]).content for image in ended["images"]]
    for png, image in zip(pngs, ended["images"], strict=True):
        assert hashlib.sha256(png).hexdigest() == image["sha256"]
        assert picture(png).size == (8, 8)
    with ZipFile(BytesIO(service.http.get(ended["links"]["archive"]).content)) as archive:
        assert [archive.read(name) for name in archive.namelist()] == pngs
    grid = picture(service.http.get(ended["links"]["grid"]).content)
    assert grid.size[0] > 8


def test_a_picture_is_what_the_plain_loop_makes_of_the_recipe_in_it(calm: Service) -> None:
    calm.models = "fashion-mnist-28"
    calm.add_worker()
    for sampler in ({"sampler": "dpmpp_2m"}, {"sampler": "ddpm", "variance": "analytic"}):
        recipe = {"model": calm.models, "seed": 3, "start": 9, "count": 1, "steps": 10, **sampler}
        png = picture(next(iter(calm.pngs(calm.post(**recipe)["id"]).values())))
        drawn = torch.from_numpy(np.array(png)).int()
        off = (
            drawn - draw_again(json.loads(png.text["ddpm"]), "analytic" in recipe.values())
        ).abs()
        assert off.max() <= 1, "the same image, but for a value at the edge of two grey levels"
        assert (off > 0).sum() <= 2


def draw_again(found: dict[str, Any], analytic: bool) -> torch.Tensor:
    """Draw the image of a recipe by the plain loop, and return its grey levels, int (28, 28)."""
    folder = SHIPPED / found["model"]
    loaded = diffusers_format.load(folder, found["weights"])
    assert analytic == ("residual_variance" in found)
    residual = None
    if analytic:
        name = found["residual_variance"]
        residual = ResidualVariance.read(folder, loaded.sha256, loaded.schedule.T, name).tensor
    options = {"variance": found["variance"], "eta": found["eta"], "residual_variance": residual}
    plan = compile_plan(loaded.schedule, found["steps"], found["sampler"], **options)
    network = ServedNetwork(loaded, torch.device("cpu"), found["precision"])
    return to_bytes(sample(network, plan, found["seed"], [found["index"]], (1, 28, 28)))[0, 0].int()


def test_polling_shows_the_progress_of_the_steps(service: Service) -> None:
    job = service.post(count=16, steps=400)
    steps = []
    while (now := service.job(job["id"]))["state"] in ("queued", "running"):
        steps.append(now["progress"]["step"])
        time.sleep(0.02)
    assert steps == sorted(steps)
    assert len(set(steps)) >= 3


def test_a_running_image_can_be_seen_as_it_becomes_one(service: Service) -> None:
    job = service.post(count=3, steps=1000)["id"]
    seen: list[int] = []
    while service.job(job)["state"] in ("queued", "running"):
        answer = service.http.get(f"/v1/jobs/{job}/images/1/preview")
        if answer.status_code == 200:
            recipe = json.loads(picture(answer.content).text["ddpm"])
            seen += [recipe["step"]] if "step" in recipe else []
        time.sleep(0.1)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 2, f"steps seen: {seen}"
    image = service.http.get(f"/v1/jobs/{job}/images/1")
    assert service.http.get(f"/v1/jobs/{job}/images/1/preview").content == image.content


def test_a_stream_shows_images_as_they_become_pictures(service: Service) -> None:
    job = service.post(count=3, steps=1000)["id"]
    with sse.read(service.http, job, previews=[0, 2]) as stream:
        events = [event for event in stream if event.name in ("preview", "image")]
    for index in (0, 2):
        *previews, last = [event for event in events if event.data["index"] == index]
        assert last.name == "image"
        pngs = [picture(b64decode(event.data["png"])) for event in previews]
        steps = [json.loads(png.text["ddpm"])["step"] for png in pngs]
        assert steps == sorted(set(steps))
        assert len(steps) >= 2, f"steps seen: {steps}"
    assert [event.name for event in events if event.data["index"] == 1] == ["image"]


def test_an_image_is_the_same_alone_and_in_a_big_job_across_shards_and_workers(
    service: Service,
) -> None:
    big = service.pngs(service.post(count=130, seed=21, steps=15)["id"])
    alone = [
        service.post(count=1, start=index, seed=21, steps=15)["id"] for index in (0, 63, 64, 129)
    ]
    for job in alone:
        for index, png in service.pngs(job).items():
            assert png == big[index]


def test_two_workers_share_one_big_job(service: Service) -> None:
    job = service.post(count=200, steps=150)
    at_work: set[bytes] = set()

    def both_at_work() -> bool:
        names = (
            service.redis.hget(key, "worker_name")
            for key in service.redis.scan_iter(f"rq:execution:{job['id']}-*")
        )
        at_work.update(name for name in names if name)
        return len(at_work) == 2

    eventually(both_at_work, 120, "two workers hold shards of the job")
    service.finished(job["id"])


def test_a_small_job_does_not_wait_behind_a_big_one(service: Service) -> None:
    big = service.post(count=640, steps=200)
    small = service.post(count=1, steps=20)
    service.finished(small["id"])
    assert service.job(big["id"])["state"] == "running"
    service.http.delete(f"/v1/jobs/{big['id']}")


def test_cancel_stops_a_running_job_at_once_and_frees_its_place(service: Service) -> None:
    job = service.post(count=64, steps=1000)["id"]
    eventually(lambda: service.job(job)["progress"]["fraction"] > 0, 120, "the job runs")
    cancelled = service.http.post(f"/v1/jobs/{job}/cancel").json()
    assert cancelled["state"] == "cancelled"
    step = cancelled["progress"]["step"]
    shard = f"rq:job:{job}-0"
    eventually(lambda: not service.redis.exists(shard), 120, "the worker let the shard go")
    assert service.job(job)["progress"]["step"] - step <= 1
    assert service.http.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    service.finished(service.post(count=1, steps=5)["id"])


def test_images_that_were_finished_before_a_cancel_stay(service: Service) -> None:
    job = service.post(count=256, steps=100)["id"]
    eventually(lambda: service.job(job)["progress"]["images_done"] > 0, 120, "an image is finished")
    cancelled = service.http.post(f"/v1/jobs/{job}/cancel").json()
    done = [image for image in cancelled["images"] if image["state"] == "finished"]
    assert cancelled["state"] == "cancelled"
    assert 0 < len(done) < 256
    assert all(service.http.get(image["url"]).status_code == 200 for image in done)


def test_deleting_a_running_job_leaves_no_key_behind(service: Service) -> None:
    job = service.post(count=200, steps=1000)["id"]
    eventually(lambda: service.job(job)["progress"]["fraction"] > 0, 120, "the job runs")
    assert service.http.delete(f"/v1/jobs/{job}").status_code == 204

    def keys() -> list[str]:
        return [key for key in service.key_names() if job in key]

    eventually(lambda: not keys(), 120, "all its keys are gone")
    time.sleep(1)
    assert keys() == [], "a worker brought a key back"
    assert service.http.get(f"/v1/jobs/{job}").status_code == 404


def test_a_network_that_gives_nan_fails_its_job_and_no_other(service: Service) -> None:
    recipe = {"count": 8, "seed": 9, "steps": 200}
    undisturbed = service.pngs(service.post(**recipe)["id"])
    good = service.post(**recipe)["id"]
    bad = service.post(model="blows-up", count=2, steps=3)["id"]
    eventually(lambda: service.job(bad)["state"] == "failed", 120, "the job has failed")
    assert service.job(bad)["error"]["code"] == "not_finite"
    assert not any(image["state"] == "finished" for image in service.job(bad)["images"])
    assert service.pngs(good) == undisturbed


@pytest.mark.slow
def test_every_key_but_the_configuration_expires_after_300_jobs(service: Service) -> None:
    jobs = [service.post(count=1, steps=1, seed=n)["id"] for n in range(300)]
    for job in jobs:
        service.finished(job)
    eventually(lambda: not list(service.redis.scan_iter("rq:job:*")), 120, "every shard is closed")
    for_ever = {key for key in service.key_names() if service.redis.ttl(key) == -1}
    assert {key for key in for_ever if not key.startswith("rq:workers:")} <= CONFIGURATION


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_gives_its_shards_back_and_exits_cleanly(
    service: Service,
) -> None:
    worker = service.add_worker()
    jobs = [service.post(count=64, seed=seed, steps=100)["id"] for seed in range(4)]
    eventually(
        lambda: all(service.job(job)["state"] == "running" for job in jobs), 120, "all jobs run"
    )
    assert worker.stop(within_s=60) == 0
    given_back = int(re.search(r"gave back (\d+) shards", worker.log.read_text())[1])
    for job in jobs:
        assert service.finished(job)["attempts"] == 1, "what is given back is not lost"
    lines = [line for other in service.workers for line in other.log.read_text().splitlines()]
    resumed = [line for line in lines if "resume" in line]
    assert sum(job in line for line in resumed for job in jobs) >= given_back
