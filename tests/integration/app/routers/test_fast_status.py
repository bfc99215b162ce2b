"""A status asked for without a query goes past FastAPI: nobody is to see that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.jobs.queries import JobQueries
from tests.support.worker import IdleWorker

Post = Callable[..., dict[str, Any]]
ROUTED = {"any": "parameter"}  # which the route ignores
UNSTABLE = {"date"}


def heard(response: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    return (
        response.status_code,
        {k: v for k, v in response.headers.items() if k not in UNSTABLE},
        response.content,
    )


def ended(api: httpx.Client, worker: IdleWorker, post: Post) -> str:
    """A job whose status does not change any more."""
    job = post(count=70)["id"]
    worker.start(job)
    worker.publish(job, range(70))
    return job


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
def test_it_is_what_the_route_says(
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
        assert heard(api.request(method, path)) == heard(
            api.request(method, path, params=ROUTED)
        ), path
    assert api.get(f"/v1/jobs/{job}").json()["state"] == "finished"


def test_only_what_has_no_query_goes_past_the_route(
    api: httpx.Client, worker: IdleWorker, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, routed = ended(api, worker, post), []
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


def test_a_bug_is_a_problem_too(url: str, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    job = post()["id"]

    async def broken(*_: object) -> bytes:
        raise ArithmeticError

    monkeypatch.setattr(JobQueries, "status", broken)
    past, routed = (
        httpx.get(f"{url}/v1/jobs/{job}"),
        httpx.get(f"{url}/v1/jobs/{job}", params=ROUTED),
    )
    assert heard(past) == heard(routed)
    assert (past.status_code, past.json()["type"]) == (500, "urn:problem-type:ddpm:internal")
