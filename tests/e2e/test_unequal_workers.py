"""Workers that draw other bits, in processes of their own: a job stays with those of one kind."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from tests.e2e.conftest import Service
from tests.support.processes import eventually
from worker.backends.served_network import precisions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        "bf16" not in precisions(torch.device("cpu")), reason="this CPU computes no bf16 natively"
    ),
]


def makers(service: Service, job: dict[str, Any]) -> dict[str, set[str]]:
    """Return the fingerprints of the finished images, by precision."""
    found: dict[str, set[str]] = {}
    for image in job["images"]:
        if image["state"] == "finished":
            png = Image.open(BytesIO(service.http.get(image["url"]).content))
            recipe = json.loads(png.info["ddpm"])
            found.setdefault(recipe["precision"], set()).add(recipe["fingerprint"])
    return found


def test_a_job_stays_with_one_fingerprint_until_its_last_worker_is_killed(calm: Service) -> None:
    first = calm.add_worker("tests.support.short_leases", precision="fp32")
    job = calm.post(count=320, seed=5, steps=60)["id"]
    eventually(lambda: calm.job(job)["state"] == "running", 60, "the first worker has the job")
    second = calm.add_worker(precision="bf16")
    served = [worker["models"]["tiny"] for worker in calm.http.get("/readyz").json()["workers"]]
    fingerprint = {model["precision"]: model["fingerprint"] for model in served}
    assert fingerprint["fp32"] != fingerprint["bf16"]
    assert f"fingerprint {fingerprint['bf16']}" in second.log.read_text()

    small = calm.finished(calm.post(count=1, seed=6, steps=5)["id"])
    assert small["uniform"] is True, "jobs that have not begun go to any worker"
    eventually(lambda: calm.job(job)["progress"]["images_done"] > 64, 120, "images are finished")
    first.kill()
    by_then = calm.job(job)
    assert makers(calm, by_then) == {"fp32": {fingerprint["fp32"]}}
    assert by_then["uniform"] is True

    ended = calm.finished(job, within_s=200)
    assert ended["uniform"] is False
    assert makers(calm, ended) == {name: {print_} for name, print_ in fingerprint.items()}
