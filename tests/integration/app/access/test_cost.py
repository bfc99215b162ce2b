"""What requests cost a key, over HTTP: a dear one makes the next wait the longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from redis import Redis

from app.access.api_keys import new_key
from app.main import create_app
from app.settings import ApiSettings
from tests.support.problems import problem
from tests.support.server import serve
from tests.support.worker import IdleWorker

MAKER = "maker"
# Each sends one request in a hundred seconds, and sees the maker's jobs.
READERS = [f"reader-{number}" for number in range(8)]
EACH_S = 100
JOB = {"model": "tiny", "count": 48, "steps": 1}
Client = Callable[[str], httpx.Client]


@pytest.fixture(scope="session")
def secrets() -> dict[str, tuple[str, str]]:
    return {name: new_key(name) for name in (MAKER, *READERS)}


@pytest.fixture
def client(
    settings: ApiSettings, redis: Redis, secrets: dict[str, tuple[str, str]], tmp_path: Path
) -> Iterator[Client]:
    """Clients by the name of their key."""
    tables = [
        f"[{name}]\nrequests_per_s = {0 if name == MAKER else 1 / EACH_S}\n"
        f'keys = [{{ sha256 = "{entry.partition(":")[2]}", scopes = ["operate"] }}]'
        for name, (_, entry) in secrets.items()
    ]
    file = tmp_path / "keys.toml"
    file.write_text("\n".join(tables))
    with ExitStack() as stack:
        app = create_app(settings.model_copy(update={"api_keys_file": file}))
        url = stack.enter_context(serve(app))

        def client(name: str) -> httpx.Client:
            headers = {"authorization": f"Bearer {secrets[name][0]}"}
            return stack.enter_context(httpx.Client(base_url=url, timeout=10, headers=headers))

        yield client


def finished_job(client: Client, worker: IdleWorker) -> str:
    job = client(MAKER).post("/v1/jobs", json=JOB).json()["id"]
    worker.start(job)
    worker.publish(job, range(48))
    return str(job)


COSTS = {
    "/v1/jobs/{job}": 0.0,
    "/v1/jobs?owner=maker": 1 / 4,
    "/v1/jobs?owner=maker&state=failed": 0.0,
    "/v1/jobs/{job}/grid": 48 / 6,
    "/v1/jobs/{job}/archive": 48 / 24,
    "/v1/jobs/{job}/events": 48 / 40,
}


def test_a_request_costs_what_it_takes_of_the_api(client: Client, worker: IdleWorker) -> None:
    job = finished_job(client, worker)
    for name, (path, beyond_one) in zip(READERS, COSTS.items(), strict=False):
        reader = client(name)
        answer = reader.get(path.format(job=job))
        assert answer.status_code == 200, answer.text
        assert answer.headers["ratelimit-policy"] == f'"requests";q=1;w={EACH_S}'
        refused = reader.get(path.format(job=job))
        assert "A listing counts as one for every 4 jobs" in problem(refused, 429)["detail"]
        wait_s = (1 + beyond_one) * EACH_S
        assert int(refused.headers["retry-after"]) == pytest.approx(wait_s, abs=20)
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')


def test_bytes_are_paid_for_by_the_mebibyte(client: Client, redis: Redis) -> None:
    job = client(MAKER).post("/v1/jobs", json=JOB | {"count": 1}).json()["id"]
    redis.hset(f"ddpm:job:{job}:sha256", "0", "ab" * 32)
    redis.hset(f"ddpm:job:{job}:png", "0", bytes(3 * 2**20))
    reader = client(READERS[0])
    assert len(reader.get(f"/v1/jobs/{job}/images/0").content) == 3 * 2**20
    refused = reader.get("/v1/jobs")
    assert int(refused.headers["retry-after"]) == pytest.approx(4 * EACH_S, abs=20)


def test_a_key_without_a_limit_has_no_headers_of_one(client: Client) -> None:
    answer = client(MAKER).get("/v1/me")
    assert "ratelimit" not in answer.headers
    assert answer.json()["requests"] is None
    assert client(READERS[0]).get("/v1/me").json()["requests"] == {"most": 1, "used": 1, "left": 0}
