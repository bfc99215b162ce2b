"""Results whose answers are lost on their way back: they are sent again, and count once."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import TimeoutError

from tests.support.jobs import JOB, state_of
from tests.support.loaded import load_tiny
from tests.support.parts import build_worker, post, take
from worker.jobs.keys import sha256_key


@pytest.mark.parametrize("lost", [1, 2], ids=["of what was published", "of the shard's end"])
def test_results_whose_answer_was_lost_are_sent_again_and_count_once(
    redis: Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    model = load_tiny(tmp_path)
    client = Redis.from_url(valkey_url)
    worker = build_worker(client, model)
    post(redis, model)
    take(worker)
    worker.save_all()
    while worker.active:
        worker.run_once()
    answers = 0
    execute = Pipeline.execute

    def lose_answer(pipe: Pipeline, *args: object, **options: object) -> object:
        nonlocal answers
        answer = execute(pipe, *args, **options)
        if pipe.connection_pool is client.connection_pool:
            answers += 1
            if answers == lost:
                raise TimeoutError("no answer")
        return answer

    with monkeypatch.context() as network:
        network.setattr(Pipeline, "execute", lose_answer)
        with pytest.raises(TimeoutError):
            worker.parts.sender.flush()
    hashes = redis.hgetall(sha256_key(JOB))
    assert len(hashes) == 3
    worker.parts.sender.flush()
    assert state_of(redis, JOB) == "finished"
    assert redis.hgetall(sha256_key(JOB)) == hashes
    assert not worker.parts.shards.leases
    assert not redis.keys("rq:job:*")
    assert not redis.keys("ddpm:bundle:*")
