"""Whatever can be sent is answered as the OpenAPI document says, and never with a 5xx."""

from __future__ import annotations

import re
import uuid
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from redis import Redis
from schemathesis import GenerationMode

from tests.support.worker import IdleWorker

BOUNDED = hypothesis_settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """Nobody is to wait for a minute here."""
    if query and isinstance(query.get("wait"), int | float) and 0.05 < query["wait"] <= 60:
        return query | {"wait": 0.05}
    return query


@schemathesis.hook
def map_headers(context: Any, headers: dict[str, Any] | None) -> dict[str, Any] | None:
    """A key that was sent with another body is refused, and the document cannot say which those are: every key is new."""
    if headers and re.fullmatch("[!-~]{1,255}", str(headers.get("idempotency-key", ""))):
        return {**headers, "idempotency-key": uuid.uuid4().hex}
    return headers


@pytest.fixture
def document(url: str, redis: Redis) -> Any:
    worker = IdleWorker(redis)
    worker.announce()
    finished = httpx.post(f"{url}/v1/jobs", json={"model": "tiny"}).json()["id"]
    worker.start(finished)
    worker.publish(finished, [0])
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_answer_is_as_documented(document: Any) -> None:
    for operation in document.get_all_operations():
        _check(operation.ok())


def _check(operation: Any) -> None:
    @given(case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
    @BOUNDED
    def check(case: Any) -> None:
        case.call_and_validate()

    check()


def test_jobs_that_follow_each_other_are_answered_as_documented(document: Any) -> None:
    machine = document.as_state_machine()
    machine.run(settings=hypothesis_settings(BOUNDED, max_examples=15, stateful_step_count=6))
