"""What the API and the workers agree on: names of keys, fields of a job, and its changes of state. Knows no torch.

A job is four keys, all gone after their TTL:

    ddpm:job:<id>         hash: what was asked for, state, times, error; `p<k>` is shard k's progress, `k<k>` what of it is saved
    ddpm:job:<id>:sha256  hash: image index -> sha256 of its PNG, one field an image that is finished
    ddpm:job:<id>:png     hash: image index -> PNG, unless the worker has a results store (worker/store.py)
    ddpm:job:<id>:chains  hash: shard -> its unfinished chains as a worker last saved them; empty: they lie in the results
                          store. Gone when the job ends

A job is finished when every image has its hash: there is no counter that a crash between two writes could leave wrong.
A job is running while a worker holds a shard of it; when the last of them is lost or given back, it is queued again
(worker/scripts.py). What a late worker still has to say of it is heard all the same: its images have the same bytes.
Every change of state is one script, so that it happens whole or not at all, and is published on `CHANGES` as "<id> <state>".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal

SHARD_IMAGES = 64
MAX_COUNT = 1024
MAX_SEED = 2**53 - 1  # JSON numbers are exact up to here
MAX_INDEX = 2**32 - 1  # one word of the noise's counter
UNFINISHED_TTL_S = 7 * 24 * 3600  # nothing waits or runs this long; keys of a job that ends are given their own TTL
RECORD_TTL_S = 7 * 24 * 3600  # a job's record outlives its images by this, so that they are known to have expired

LEFT = "ddpm:left"  # hash: open job -> "<image-steps left to run> <count> <steps> <model> <owner>"
LOAD = "ddpm:load"  # hash: owner -> image-steps left of all its open jobs. Both empty themselves
CHANGES = "ddpm:changes"
EXPIRING = "ddpm:expiring"  # sorted set: job -> when what the results store holds of it is to be removed; it empties itself
WEBHOOKS = "ddpm:webhooks"  # sorted set: job that has ended -> when its webhook is to be sent next; it empties itself
WORKERS = "ddpm:workers"  # hash: worker name -> JSON of WorkerInfo (worker/info.py), with its own end in it


Precision = Literal["fp32", "bf16"]  # of a network's weights and activations; chains are float32 always


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BULK = "bulk"


def job_key(job: str) -> str:
    return f"ddpm:job:{job}"


def sha256_key(job: str) -> str:
    return f"ddpm:job:{job}:sha256"


def png_key(job: str) -> str:
    return f"ddpm:job:{job}:png"


def chains_key(job: str) -> str:
    return f"ddpm:job:{job}:chains"


def owner_key(owner: str) -> str:
    """Sorted set of an owner's jobs by time of creation."""
    return f"ddpm:jobs:{owner}"


def open_key(priority: str) -> str:
    """Sorted set of the jobs that have not ended, by time of creation."""
    return f"ddpm:open:{priority}"


def idempotency_key(owner: str, key: str) -> str:
    """String: "<job> <what was asked for, hashed>", for as long as the job's record. Any characters may be in `key`."""
    return f"ddpm:idempotency:{owner}:{sha256(key.encode()).hexdigest()}"


def queue_name(priority: str, model: str) -> str:
    return f"{priority}:{model}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that an image's bytes depend on, its index apart. `weights` is the sha256 of the safetensors file."""

    model: str
    weights: str
    sampler: str
    steps: int
    variance: str
    eta: float
    seed: int


@dataclass(frozen=True, slots=True)
class Shard:
    """At most SHARD_IMAGES consecutive images of a job; what one RQ job carries, as JSON."""

    job: str
    number: int
    first: int
    count: int
    owner: str
    job_priority: str
    recipe: Recipe

    @property
    def id(self) -> str:
        return f"{self.job}-{self.number}"

    @property
    def priority(self) -> Priority:
        """Only a job's first shard is interactive: a big job starts at once, and the rest of it is in nobody's way."""
        return Priority(self.job_priority) if self.number == 0 else Priority.BULK

    @property
    def queue(self) -> str:
        return queue_name(self.priority, self.recipe.model)

    @property
    def indices(self) -> range:
        return range(self.first, self.first + self.count)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Shard:
        """Raises TypeError for fields of another version."""
        return cls(**{**fields, "recipe": Recipe(**fields["recipe"])})


def job_of(shard_id: str) -> str:
    return shard_id.rpartition("-")[0]


def shards_of(job: str, recipe: Recipe, start: int, count: int, owner: str, priority: str) -> Iterator[Shard]:
    for number in range(shard_count(count)):
        first = start + number * SHARD_IMAGES
        yield Shard(job, number, first, min(SHARD_IMAGES, start + count - first), owner, priority, recipe)


def shard_count(count: int) -> int:
    return math.ceil(count / SHARD_IMAGES)


def progress_field(shard: int) -> str:
    """Field of the job's hash; its value is "<step of the least advanced image>,<image-steps done>"."""
    return f"p{shard}"


def _script(body: str) -> str:
    values = {"$CHANGES": CHANGES, "$RECORD_TTL_S": RECORD_TTL_S, "$UNFINISHED_TTL_S": UNFINISHED_TTL_S}
    script = _SHARED + body
    for name, value in values.items():
        script = script.replace(name, str(value))
    return script


# Changes of state. KEYS are always: job, sha256, png, open set, chains, expiring, left, load, webhooks.
# `finish` closes a job for good.
# `external` in a job's hash: some of its PNGs may lie in the results store, written before their hash is.
_SHARED = """
local function state() return redis.call('HGET', KEYS[1], 'state') end
local function is_open() local s = state(); return s == 'queued' or s == 'running' end
local function is_external() return redis.call('HGET', KEYS[1], 'external') end
local id = string.match(KEYS[1], '[^:]+$')
local function remove_objects_at(due) redis.call('ZADD', KEYS[6], math.floor(due), id) end
-- What is left to run is in `left`, and in the sum of the owner's in `load`. All of it, where `image_steps` is nil: the job is
-- in the books no more, so nothing of it can be subtracted twice.
local function subtract(job, image_steps)
  local left, about, owner = string.match(redis.call('HGET', KEYS[7], job) or '', '^(%S+) (%S+ %S+ %S+ (.*))$')
  if not left then return end
  if image_steps then
    redis.call('HSET', KEYS[7], job, (left - image_steps) .. ' ' .. about)
  else
    redis.call('HDEL', KEYS[7], job)
  end
  -- not -x: of 0 that is "-0", which Redis 7.0 takes for no integer
  if redis.call('HINCRBY', KEYS[8], owner, 0 - (image_steps or left)) <= 0 then redis.call('HDEL', KEYS[8], owner) end
end
local function finish(to, now)
  local ttl = tonumber(redis.call('HGET', KEYS[1], 'results_ttl_s'))
  redis.call('HSET', KEYS[1], 'state', to, 'finished_at', now)
  redis.call('EXPIRE', KEYS[3], ttl)
  redis.call('EXPIRE', KEYS[1], ttl + $RECORD_TTL_S)
  redis.call('EXPIRE', KEYS[2], ttl + $RECORD_TTL_S)
  if is_external() then remove_objects_at(now + ttl) end
  redis.call('DEL', KEYS[5])
  redis.call('ZREM', KEYS[4], id)
  local idempotency = redis.call('HGET', KEYS[1], 'idempotency')
  if idempotency then redis.call('EXPIRE', idempotency, ttl + $RECORD_TTL_S) end
  subtract(id)
  if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
    redis.call('ZADD', KEYS[9], now, id)
    redis.call('EXPIRE', KEYS[9], $RECORD_TTL_S) -- where no API has a secret, nobody empties it
  end
  redis.call('PUBLISH', '$CHANGES', id .. ' ' .. to)
end
"""

# ARGV: now, attempt, 1 for a worker that has a results store. -> 'running', or the final state, or false for a job that is gone.
START = _script("""
if not is_open() then return state() end
local attempts = tonumber(redis.call('HGET', KEYS[1], 'attempts'))
if tonumber(ARGV[2]) > attempts then redis.call('HSET', KEYS[1], 'attempts', ARGV[2]) end
if ARGV[3] == '1' and not is_external() then
  redis.call('HSET', KEYS[1], 'external', 1)
  remove_objects_at(ARGV[1] + $UNFINISHED_TTL_S)
end
if state() == 'queued' then
  redis.call('HSET', KEYS[1], 'state', 'running')
  redis.call('HSETNX', KEYS[1], 'started_at', ARGV[1])
  redis.call('PUBLISH', '$CHANGES', id .. ' running')
end
return state()""")

# ARGV: field, value. -> 1, or 0 where the job has ended or is gone: the worker drops its chains.
PROGRESS = _script("""
if not is_open() then return 0 end
local function done(progress) return tonumber(string.match(progress or '', ',(%d+)')) or 0 end
local before = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
subtract(id, done(ARGV[2]) - done(before))
return 1""")

# ARGV: shard, blob, image-steps that are done in it. -> 1, or 0 where the job has ended or is gone.
SAVE = _script("""
if not is_open() then return 0 end
redis.call('HSET', KEYS[5], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'k' .. ARGV[1], ARGV[3])
redis.call('EXPIRE', KEYS[5], $UNFINISHED_TTL_S)
return 1""")

# ARGV: now, then index, sha256, PNG an image. Binary PNGs are plain arguments; one in the results store is empty.
# -> 1, or 0 where the job has ended or is gone. The image that completes the job closes it.
# A late worker may have put objects back after all were removed: then they are due again.
PUBLISH = _script("""
if not is_open() then
  local job = redis.call('HMGET', KEYS[1], 'finished_at', 'results_ttl_s')
  if ARGV[4] == '' then remove_objects_at(job[1] and job[1] + job[2] or ARGV[1]) end
  return 0
end
for i = 2, #ARGV, 3 do
  -- the first one stays: a late worker on another kind of machine must not change what clients have cached
  if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 and ARGV[i + 2] ~= '' then
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 2])
  end
end
redis.call('EXPIRE', KEYS[2], $UNFINISHED_TTL_S)
redis.call('EXPIRE', KEYS[3], $UNFINISHED_TTL_S)
if redis.call('HLEN', KEYS[2]) == tonumber(redis.call('HGET', KEYS[1], 'count')) then finish('finished', ARGV[1]) end
return 1""")

# ARGV: now, code, message. -> 1, or 0 where the job had ended already.
FAIL = _script("""
if not is_open() then return 0 end
redis.call('HSET', KEYS[1], 'error_code', ARGV[2], 'error_message', ARGV[3])
finish('failed', ARGV[1])
return 1""")

# ARGV: now. -> the state afterwards, or false for a job that is gone.
CANCEL = _script("""
if is_open() then finish('cancelled', ARGV[1]) end
return state()""")


# Before the keys of a job are deleted. ARGV: when to remove what the results store holds of it. -> 1, or 0 where that is nothing.
DOOM = _script("""
subtract(id)
redis.call('ZREM', KEYS[9], id)
local idempotency = redis.call('HGET', KEYS[1], 'idempotency')
if idempotency then redis.call('DEL', idempotency) end
if not is_external() then return 0 end
remove_objects_at(ARGV[1])
return 1""")

# Take the oldest open jobs out of the books whose record has expired: nobody ran them. KEYS[1] is the prefix of records.
FORGET = _script("""
for _, job in ipairs(redis.call('ZRANGE', KEYS[4], 0, 99)) do
  if redis.call('EXISTS', KEYS[1] .. job) == 0 then
    subtract(job)
    redis.call('ZREM', KEYS[4], job)
  end
end""")


def transition_keys(job: str, priority: str) -> list[str]:
    """The KEYS of every script above."""
    of_the_job = [job_key(job), sha256_key(job), png_key(job), open_key(priority), chains_key(job)]
    return [*of_the_job, EXPIRING, LEFT, LOAD, WEBHOOKS]
