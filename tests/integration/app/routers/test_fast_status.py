"""A status without a query goes past FastAPI, and no client can see that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.jobs.queries import JobQueries
from tests.support.worker import IdleWorker

Post = Callable[..., dict[str, Any]]
# A parameter that the route ignores.
ROUTED = {"any": "parameter"}
UNSTABLE = {"date", "x-request-id"}


def seen(response: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """Return all that a client sees of a response, without what no two have in common."""
    headers = {name: value for name, value in response.headers.items() if name not in UNSTABLE}
    return response.status_code, headers, response.content


def ended(api: httpx.Client, worker: IdleWorker, post: Post) -> str:
    """Post a job, and have it finished: its status does not change any more."""
    job = post(count=70)["id"]
    worker.start(job)
    worker.publish(job, range(70))
    return job


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
def test_a_fast_status_is_what_the_route_answers(
    api: httpx.Client, worker: IdleWorker, post: Post, method: str
) -> None:
    job = ended(api, worker, post)
    for path in (
        f"/v1/jobs/{job}",
        f"/v1/jobs/{job.upper()}",
        f"/v1/jobs/{job}/",
        f"/v1/jobs/{'0' * 32}",
        "/v1/jobs/a%20b",
    ):
        fast = api.request(method, path)
        routed = api.request(method, path, params=ROUTED)
        assert seen(fast) == seen(routed), path
    assert api.get(f"/v1/jobs/{job}").json()["state"] == "finished"


def test_only_requests_without_a_query_go_past_the_route(
    api: httpx.Client, worker: IdleWorker, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ended(api, worker, post)
    routed = []
    wait = JobQueries.wait

    async def noted(queries: JobQueries, *args: Any) -> bytes:
        routed.append(args[0])
        return await wait(queries, *args)

    monkeypatch.setattr(JobQueries, "wait", noted)
    assert api.get(f"/v1/jobs/{job}").is_success
    assert routed == []
    assert api.get(f"/v1/jobs/{job}", params={"wait": 0}).is_success
    assert routed == [job]
    assert api.get(f"/v1/jobs/{job}", params={"wait": -1}).status_code == 422


def test_a_bug_in_a_fast_status_is_a_problem_too(
    url: str, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = post()["id"]

    async def broken(*_: object) -> bytes:
        raise ArithmeticError

    monkeypatch.setattr(JobQueries, "status", broken)
    fast = httpx.get(f"{url}/v1/jobs/{job}")
    routed = httpx.get(f"{url}/v1/jobs/{job}", params=ROUTED)
    assert seen(fast) == seen(routed)
    assert (fast.status_code, fast.json()["type"]) == (500, "urn:problem-type:ddpm:internal")
