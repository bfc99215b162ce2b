"""Every request is answered as the OpenAPI document says, and never with a 5xx."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from redis import Redis
from schemathesis import GenerationMode

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from models.checkpoints.catalog import SHIPPED, Catalog
from tests.support.exact_document import exact
from tests.support.server import serve
from tests.support.worker import IdleWorker

BOUNDED = hypothesis_settings(
    max_examples=16,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# More than the document allows, and less than the 64 KiB of a head.
_MOST_IN_A_LIST = 1500


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Cut waits short, as a test must not wait for a minute, and lists that no head can hold."""
    if query and isinstance(query.get("image"), list):
        query = query | {"image": query["image"][:_MOST_IN_A_LIST]}
    if query and isinstance(query.get("wait"), int | float) and 0.05 < query["wait"] <= 60:
        return query | {"wait": 0.05}
    return query


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """Make every Idempotency-Key a new one.

    A key that was sent with another body is refused, and the document cannot say which those are.
    """
    if headers and re.fullmatch("[!-~]{1,255}", str(headers.get("idempotency-key", ""))):
        return {**headers, "idempotency-key": uuid.uuid4().hex}
    return headers


@pytest.fixture(params=["without keys", "with keys"])
def document(request: pytest.FixtureRequest, settings: ApiSettings, redis: Redis) -> Iterator[Any]:
    """The document of an API that has one job, which has ended.

    Where the API has keys, schemathesis sends one.
    """
    key, entry = new_key("ann") if request.param == "with keys" else ("", "")
    keyed = ApiSettings(**settings.model_dump() | {"api_keys": entry, "key_requests_per_s": 0})
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with serve(create_app(keyed)) as url:
        worker = IdleWorker(redis)
        # It outlives all requests of the test, on any machine.
        worker.announce(lives_s=3600)
        posted = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}, headers=headers)
        finished = posted.json()["id"]
        worker.start(finished)
        worker.publish(finished, [0])
        served = httpx.get(f"{url}/openapi.json").json()
        catalog = Catalog.read(SHIPPED, settings.models_dir)
        document = schemathesis.openapi.from_dict(
            exact(served, catalog, catalog.default.name, keyed=bool(key))
        )
        document.config.update(base_url=url)
        document.auth()(_auth(headers))
        yield document


def _auth(headers: dict[str, str]) -> type:
    class Auth:
        def get(self, case: Any, context: Any) -> dict[str, str]:
            return headers

        def set(self, case: Any, data: dict[str, str], context: Any) -> None:
            case.headers = {**(case.headers or {}), **data}

    return Auth


def test_every_answer_is_as_documented(document: Any, request: pytest.FixtureRequest) -> None:
    # With keys the same routes answer, behind a gate.
    examples = 8 if request.node.callspec.params["document"] == "with keys" else 20
    for operation in document.get_all_operations():
        _check(operation.ok(), hypothesis_settings(BOUNDED, max_examples=examples))


def _check(operation: Any, bounded: hypothesis_settings) -> None:
    @given(
        case=operation.as_strategy(GenerationMode.POSITIVE)
        | operation.as_strategy(GenerationMode.NEGATIVE)
    )
    @bounded
    def check(case: Any) -> None:
        case.call_and_validate()

    check()


OF_A_JOB = {
    ("GET /v1/jobs/{job_id}", 200),
    ("GET /v1/jobs/{job_id}/events", 200),
    ("GET /v1/jobs/{job_id}/grid", 409),
    ("GET /v1/jobs/{job_id}/archive", 409),
    ("GET /v1/jobs/{job_id}/images/{index}", 409),
    ("GET /v1/jobs/{job_id}/images/{index}/preview", 409),
    ("POST /v1/jobs/{job_id}/cancel", 200),
    ("DELETE /v1/jobs/{job_id}", 204),
}


@pytest.mark.parametrize("document", ["with keys"], indirect=True)
def test_jobs_that_follow_each_other_are_answered_as_documented(
    document: Any, redis: Redis
) -> None:
    met: set[tuple[str, int]] = set()

    class Machine(document.as_state_machine()):
        def before_call(self, case: Any) -> None:
            job = case.path_parameters.get("job_id", "")
            if case.operation.path.endswith("/events") and re.fullmatch("[0-9a-f]{32}", job):
                IdleWorker(redis).fail(job, "ended", "by a test, so that its stream ends")

        def after_call(self, response: Any, case: Any) -> None:
            met.add((case.operation.label, response.status_code))

    chance = hypothesis_settings(BOUNDED, derandomize=False, database=None, stateful_step_count=8)
    # A machine meets what chance gives it, and each of these is another chance.
    for _ in range(25):
        Machine.run(settings=chance)
        if met >= OF_A_JOB:
            break
    assert met >= OF_A_JOB, "a machine that does not meet its own jobs shows nothing"
