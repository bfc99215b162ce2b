"""An API in a process of its own."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from redis import Redis

from bench.systems.api import api_apart


@pytest.mark.redis
def test_its_queue_lies_beside_the_results_while_it_runs(tmp_path: Path):
    with (
        api_apart(tmp_path / "results") as api,
        Redis.from_url(api.redis_url, decode_responses=True) as valkey,
    ):
        assert httpx.get(f"{api.url}/healthz").is_success
        assert Path(valkey.config_get("dir")["dir"]).parent == tmp_path / "results"
    assert list((tmp_path / "results").iterdir()) == []
