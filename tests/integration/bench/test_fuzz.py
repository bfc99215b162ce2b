"""The short form of `python -m bench.fuzz`, with fixed seeds, against an API of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis

from app.access.api_keys import new_key
from app.http.connection import Connection
from app.main import create_app
from app.settings import ApiSettings
from bench.fuzz.client import FuzzTally, send_all
from bench.fuzz.mutations import make_case
from bench.fuzz.service import HealthProbe, JobsOfEveryKind
from tests.support.server import serve

KEY, ENTRY = new_key("ann")
CASES = 300
GUARDED = {
    "api_keys": ENTRY,
    "key_requests_per_s": 0,
    "trusted_proxies": "127.0.0.1",
    "cors_origins": "https://app.example.com",
    "root_path": "/ddpm",
    "webhook_secret": "s" * 32,
}


class HastyConnection(Connection):
    """Gives a request half a second to arrive, so that no case takes long."""

    arrives_within_s = 0.5


@pytest.fixture(params=["plain", "guarded"])
def api(request: pytest.FixtureRequest, valkey_url: str) -> Iterator[httpx.Client]:
    """A client of an API, with all that it needs to be let in."""
    guarded = request.param == "guarded"
    settings = ApiSettings(redis_url=valkey_url, **GUARDED if guarded else {})
    headers = {"Authorization": f"Bearer {KEY}"} if guarded else {}
    with (
        serve(create_app(settings), connection=HastyConnection, timeout_keep_alive=1) as url,
        httpx.Client(base_url=url, headers=headers, timeout=60) as client,
    ):
        yield client


def test_mutated_requests_get_well_formed_answers_and_cause_no_bug(
    api: httpx.Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = JobsOfEveryKind(api, redis)
    sent = tuple(
        (name.encode(), value.encode())
        for name, value in api.headers.items()
        if name == "authorization"
    )
    make = partial(make_case, 1, jobs=jobs.ids, headers=sent)
    tally = FuzzTally()
    port = urlsplit(str(api.base_url)).port
    with HealthProbe(str(api.base_url)) as probe:
        asyncio.run(send_all(port, make, iter(range(CASES)), tally, patience_s=60))
    assert tally.cases == CASES
    assert tally.findings == []
    assert probe.refused == []
    assert not [record for record in caplog.records if record.exc_info]
    assert {200, 202, 400, 404, 408} <= tally.statuses.keys()
