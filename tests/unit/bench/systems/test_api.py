"""An API in a process of its own."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from redis import Redis

from bench.systems.api import start_api


@pytest.mark.redis
def test_the_queue_lies_next_to_the_results_while_the_api_runs(tmp_path: Path) -> None:
    with (
        start_api(tmp_path / "results") as api,
        Redis.from_url(api.redis_url, decode_responses=True) as valkey,
    ):
        assert httpx.get(f"{api.url}/healthz").is_success
        assert Path(valkey.config_get("dir")["dir"]).parent == tmp_path / "results"
    assert list((tmp_path / "results").iterdir()) == []
