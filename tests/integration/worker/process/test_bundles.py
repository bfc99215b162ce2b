"""Saved chains of many small shards, which lie in one blob, and of large ones, in pieces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from redis import Redis
from redis.client import Pipeline
from safetensors.torch import load, save

from models.checkpoints.catalog import Catalog
from tests.support.folders import write_model
from tests.support.jobs import have_ended, make_recipe, make_shard, post_job, state_of
from tests.support.parts import begin, build_worker, run_to_the_end, take
from worker.calibration.calibrate import Calibration
from worker.engine.engine import Engine
from worker.engine.pool import Pool
from worker.jobs import transitions
from worker.jobs.domain import Shard
from worker.jobs.keys import BUNDLE_PREFIX, LEASES, bundle_key, chains_key, sha256_key
from worker.jobs.shard_queue import reap
from worker.process.job_writer import COMMAND_BYTES, JobWriter, Save
from worker.process.loaded_model import LoadedModel
from worker.process.loop import WorkerLoop
from worker.results.in_redis import InRedis

STEPS = 12
DONE = 5
JOBS = [f"{n:032x}" for n in range(20)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LoadedModel]]:
    """The same model in two workers, which step all images together."""
    root = tmp_path_factory.mktemp("models")
    write_model(root, "tiny")
    threads = torch.get_num_threads()
    calibration = Calibration({64: 0.001}, threads=1, fewer=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.calibration.tune.calibrate", lambda *_, **options: calibration)
        catalog = Catalog.read(root)
        yield [LoadedModel(catalog, "tiny", torch.device("cpu"), 64, "fp32") for _ in range(2)]
    torch.set_num_threads(threads)


@pytest.fixture
def models(loaded: list[LoadedModel], monkeypatch: pytest.MonkeyPatch) -> list[LoadedModel]:
    """The models with empty engines."""
    for model in loaded:
        pool = model.engine.pool
        empty = Pool(pool.network, pool.shape, pool.capacity, pool.device)
        monkeypatch.setattr(model, "engine", Engine(empty, model.calibration.seconds))
    return loaded


def post_all(redis: Redis, model: LoadedModel, sampler: str = "ddpm") -> list[Shard]:
    """Post one-image jobs with a seed each."""
    return [
        post_job(
            redis,
            make_recipe(model.card.sha256, steps=STEPS, sampler=sampler, seed=seed),
            job=job,
            count=1,
        )
        for seed, job in enumerate(JOBS)
    ]


def begin_all(redis: Redis, worker: WorkerLoop, sampler: str = "ddpm") -> list[Shard]:
    """Post the jobs, take them, and do and save DONE steps of each."""
    shards = post_all(redis, worker.models["tiny"], sampler)
    for shard in shards:
        begin(worker, shard, [0])
    for _ in range(DONE):
        worker.run_once()
    worker.save_all()
    return shards


def lose(redis: Redis, worker: WorkerLoop) -> None:
    """Let all leases of a worker lapse."""
    for lease in worker.parts.shards.leases:
        redis.zadd(LEASES, {lease.execution.composite_key: 0})
    reap(redis)


def finish_with(worker: WorkerLoop, redis: Redis) -> None:
    """Take all that waits, and finish it. Lost shards are suspects, which run alone."""
    while not have_ended(redis, *JOBS):
        take(worker)
        run_to_the_end(worker)


def bundles(redis: Redis) -> list[bytes]:
    return list(redis.scan_iter(f"{BUNDLE_PREFIX}*"))


def hashes(redis: Redis) -> list[dict[bytes, bytes]]:
    return [redis.hgetall(sha256_key(job)) for job in JOBS]


def undisturbed(redis: Redis, model: LoadedModel, sampler: str) -> list[dict[bytes, bytes]]:
    """Return the hashes of the images if nothing happens to their worker."""
    worker = build_worker(redis, model)
    begin_all(redis, worker, sampler)
    run_to_the_end(worker)
    expected = hashes(redis)
    redis.flushall()
    return expected


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_small_shards_share_a_bundle_from_which_each_goes_on(redis, models, sampler):
    expected = undisturbed(redis, models[0], sampler)
    first, second = (build_worker(redis, model) for model in models)
    begin_all(redis, first, sampler)
    [bundle] = bundles(redis)
    assert redis.hget(bundle, "left") == b"20"
    lose(redis, first)
    finish_with(second, redis)
    assert hashes(redis) == expected
    assert models[1].engine.image_steps == len(JOBS) * (STEPS - DONE)
    assert not bundles(redis)
    assert not list(redis.scan_iter("*:chains"))


def test_a_bundle_goes_when_all_its_shards_are_saved_again(redis, models):
    worker = build_worker(redis, models[0])
    begin_all(redis, worker)
    [before] = bundles(redis)
    worker.run_once()
    worker.save_all()
    [after] = bundles(redis)
    assert after != before
    assert redis.ttl(after) > 3600
    run_to_the_end(worker)


def test_a_bundle_goes_with_the_last_of_the_jobs_that_were_cancelled(redis, models):
    worker = build_worker(redis, models[0])
    shards = begin_all(redis, worker)
    for shard in shards:
        [bundle] = bundles(redis)
        transitions.CANCEL.call(redis, **transitions.transition_keys(shard.job, shard.job_priority))
    assert not redis.exists(bundle)
    assert not list(redis.scan_iter("*:chains"))


def test_a_bundle_of_jobs_that_have_all_ended_is_not_kept(redis, models):
    writer = JobWriter(redis, InRedis())
    gone = make_shard(make_recipe(), count=1)
    assert writer.save([Save(b"chains", [(gone, 1)])]) == set()
    assert not bundles(redis)


def test_a_save_that_is_sent_twice_counts_each_shard_once(redis, models):
    shards = post_all(redis, models[0])
    key = bundle_key("a")
    redis.hset(key, mapping={"pieces": 1, "0": b"chains"})
    entries = [(shard.job, shard.number, 1) for shard in shards]
    for _ in range(2):
        transitions.SAVE.call(redis, reference="bundle:a", shards=entries)
    assert redis.hget(key, "left") == b"20"


def change(redis: Redis, bundle: bytes) -> None:
    """Change the chain of the last shard by a bit."""
    tensors = load(redis.hget(bundle, "0"))
    tensors["x"][-1, 0, 0, 0] += 1e-3
    redis.hset(bundle, "0", save(tensors))


@pytest.mark.parametrize(
    ("damage", "begin_anew"),
    [
        (change, 1),
        (lambda redis, bundle: redis.hdel(bundle, "0"), len(JOBS)),
        (lambda redis, bundle: redis.hset(bundle, "0", b"garbage"), len(JOBS)),
        (lambda redis, bundle: redis.delete(bundle), len(JOBS)),
    ],
    ids=["a bit", "a lost piece", "garbage", "all of it"],
)
def test_damaged_chains_cost_their_shards_the_saved_steps_and_no_job(
    redis, models, damage, begin_anew, caplog
):
    expected = undisturbed(redis, models[0], "ddpm")
    first, second = (build_worker(redis, model) for model in models)
    begin_all(redis, first)
    [bundle] = bundles(redis)
    damage(redis, bundle)
    lose(redis, first)
    finish_with(second, redis)
    assert hashes(redis) == expected
    assert models[1].engine.image_steps == len(JOBS) * (STEPS - DONE) + begin_anew * DONE
    assert caplog.text.count("begins anew") == begin_anew


def test_chains_that_a_version_before_bundles_saved_are_continued(redis, models):
    expected = undisturbed(redis, models[0], "ddpm")
    first, second = (build_worker(redis, model) for model in models)
    shards = begin_all(redis, first)
    tensors = load(redis.hget(bundles(redis)[0], "0"))
    for number, shard in enumerate(shards):
        own = {name: tensors[name][number : number + 1] for name in ("index", "row", "x")}
        blob = save({**own, "precision": tensors["precision"]})
        redis.hset(chains_key(shard.job), "0", blob)
    lose(redis, first)
    finish_with(second, redis)
    assert hashes(redis) == expected
    assert models[1].engine.image_steps == len(JOBS) * (STEPS - DONE)


@pytest.fixture
def strict(redis: Redis) -> Iterator[Redis]:
    """A server that closes the connection of whoever sends it a command of more than 1 MiB."""
    options = ("client-query-buffer-limit", "proto-max-bulk-len")
    before = {name: redis.config_get(name)[name] for name in options}
    for name in options:
        redis.config_set(name, 1 << 20)
    yield redis
    for name, value in before.items():
        redis.config_set(name, value)


class Watched(Redis):
    """A client that calls `between` after each pipeline: the service is at work meanwhile."""

    between: Callable[[], object] = staticmethod(lambda: None)

    def pipeline(self, *args: Any, **options: Any) -> Pipeline:
        pipe = super().pipeline(*args, **options)
        execute = pipe.execute

        def watched(*args: Any, **options: Any) -> Any:
            answers = execute(*args, **options)
            self.between()
            return answers

        pipe.execute = watched
        return pipe


def test_large_chains_travel_in_pieces_between_which_a_status_answers(
    strict: Redis,
    valkey_url: str,
    models: list[LoadedModel],
    api: httpx.Client,
    post: Callable[..., dict[str, Any]],
) -> None:
    for model in models:
        model.engine.pool = Pool(lambda x, t: x, (1, 512, 512), 64, torch.device("cpu"))
    job = post(count=6, steps=STEPS)["id"]
    recipe = make_recipe(models[0].card.sha256, steps=STEPS)
    shard = make_shard(recipe, job=job, count=6)
    client = Watched.from_url(valkey_url)
    first = build_worker(client, models[0])
    second = build_worker(strict, models[1])
    lease = first.parts.shards.take([shard.rotation])
    first.parts.writer.start(shard, 1)
    models[0].admit(shard, list(shard.indices), None)
    for _ in range(DONE):
        models[0].engine.step()
    chains = [(shard.id, index) for index in shard.indices]
    snapshots = models[0].engine.snapshot(chains)
    blob = torch.stack([s.x for s in snapshots]).numpy().tobytes()
    states: list[str] = []
    client.between = lambda: states.append(api.get(f"/v1/jobs/{job}").json()["state"])
    assert first.parts.writer.save([Save(blob, [(lease.shard, 6 * DONE)])]) == {shard.id}
    pieces = -(-len(blob) // COMMAND_BYTES)
    assert states == ["running"] * pieces
    assert pieces == 7
    assert second.parts.writer.saved(shard) == blob


def test_many_pictures_of_a_shard_travel_in_several_commands(strict, models):
    writer = JobWriter(strict, InRedis())
    recipe = make_recipe(models[0].card.sha256)
    shard = post_job(strict, recipe, count=16)
    assert writer.start(shard, 1)
    pngs = [(index, os.urandom(300_000)) for index in shard.indices]
    assert writer.publish(shard, pngs, last=True)
    assert state_of(strict, shard.job) == "finished"


def test_shards_that_end_together_cost_a_few_round_trips(redis, models):
    worker = build_worker(redis, models[0])
    for shard in post_all(redis, models[0]):
        begin(worker, shard, [0])
    while worker.active:
        worker.run_once()
    before = redis.info("stats")["total_reads_processed"]
    worker.parts.sender.flush()
    reads = redis.info("stats")["total_reads_processed"] - before
    assert reads < len(JOBS), "four round trips for each would be 80"
    assert {state_of(redis, job) for job in JOBS} == {"finished"}
    assert not redis.keys("rq:job:*")
