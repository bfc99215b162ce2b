"""The changes of a job's state: each is one script, so that it happens whole or not at all, and is published on `CHANGES`.

Knows no torch. What a job's keys are is said in contract.py.
"""

from __future__ import annotations

from worker.jobs.keys import (
    CHANGES,
    EXPIRING,
    LEFT,
    LOAD,
    NOW,
    WEBHOOKS,
    chains_key,
    job_key,
    open_key,
    png_key,
    sha256_key,
)
from worker.jobs.policy import RECORD_TTL_S, UNFINISHED_TTL_S

_REMOVED_AGAIN_S = (
    60  # workers remove a deleted job's objects once more: one may just have been writing
)


def _script(body: str) -> str:
    values = {
        "$CHANGES": CHANGES,
        "$RECORD_TTL_S": RECORD_TTL_S,
        "$UNFINISHED_TTL_S": UNFINISHED_TTL_S,
        "$REMOVED_AGAIN_S": _REMOVED_AGAIN_S,
    }
    script = _SHARED + body
    for name, value in values.items():
        script = script.replace(name, str(value))
    return script


# Changes of state. KEYS are always: job, sha256, png, open set, chains, expiring, left, load, webhooks.
# `finish` closes a job for good.
# `external` in a job's hash: some of its PNGs may lie in the results store, written before their hash is.
_SHARED = (
    NOW
    + """
local function stamp() return string.format('%.6f', now()) end
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
local function finish(to)
  local ttl = tonumber(redis.call('HGET', KEYS[1], 'results_ttl_s'))
  redis.call('HSET', KEYS[1], 'state', to, 'finished_at', stamp())
  redis.call('EXPIRE', KEYS[3], ttl)
  redis.call('EXPIRE', KEYS[1], ttl + $RECORD_TTL_S)
  redis.call('EXPIRE', KEYS[2], ttl + $RECORD_TTL_S)
  if is_external() then remove_objects_at(now() + ttl) end
  redis.call('DEL', KEYS[5])
  redis.call('ZREM', KEYS[4], id)
  local idempotency = redis.call('HGET', KEYS[1], 'idempotency')
  if idempotency then redis.call('EXPIRE', idempotency, ttl + $RECORD_TTL_S) end
  subtract(id)
  if redis.call('HEXISTS', KEYS[1], 'webhook') == 1 then
    redis.call('ZADD', KEYS[9], stamp(), id)
    redis.call('EXPIRE', KEYS[9], $RECORD_TTL_S) -- where no API has a secret, nobody empties it
  end
  redis.call('PUBLISH', '$CHANGES', id .. ' ' .. to)
end
"""
)

# KEYS[10]: shards that are leased. ARGV: attempt, 1 for a worker that has a results store, its lease among those.
# -> 'running', or the final state, or false for a job that is gone or a lease that is lost: nothing starts under that.
START = _script("""
if KEYS[10] and not redis.call('ZSCORE', KEYS[10], ARGV[3]) then return false end
if not is_open() then return state() end
local attempts = tonumber(redis.call('HGET', KEYS[1], 'attempts'))
if tonumber(ARGV[1]) > attempts then redis.call('HSET', KEYS[1], 'attempts', ARGV[1]) end
if ARGV[2] == '1' and not is_external() then
  redis.call('HSET', KEYS[1], 'external', 1)
  remove_objects_at(now() + $UNFINISHED_TTL_S)
end
if state() == 'queued' then
  redis.call('HSET', KEYS[1], 'state', 'running')
  redis.call('HSETNX', KEYS[1], 'started_at', stamp())
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

# ARGV: index, sha256, PNG an image. Binary PNGs are plain arguments; one in the results store is empty.
# -> 1, or 0 where the job has ended or is gone. The image that completes the job closes it.
# A late worker may have put objects back after all were removed: then they are due again.
PUBLISH = _script("""
if not is_open() then
  local job = redis.call('HMGET', KEYS[1], 'finished_at', 'results_ttl_s')
  if ARGV[3] == '' then remove_objects_at(job[1] and job[1] + job[2] or now()) end
  return 0
end
for i = 1, #ARGV, 3 do
  -- the first one stays: a late worker on another kind of machine must not change what clients have cached
  if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 and ARGV[i + 2] ~= '' then
    redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 2])
  end
end
redis.call('EXPIRE', KEYS[2], $UNFINISHED_TTL_S)
redis.call('EXPIRE', KEYS[3], $UNFINISHED_TTL_S)
if redis.call('HLEN', KEYS[2]) == tonumber(redis.call('HGET', KEYS[1], 'count')) then finish('finished') end
return 1""")

# ARGV: code, message. -> 1, or 0 where the job had ended already.
FAIL = _script("""
if not is_open() then return 0 end
redis.call('HSET', KEYS[1], 'error_code', ARGV[1], 'error_message', ARGV[2])
finish('failed')
return 1""")

# -> the state afterwards, or false for a job that is gone.
CANCEL = _script("""
if is_open() then finish('cancelled') end
return state()""")


# Before the keys of a job are deleted. -> 1, or 0 where the results store holds nothing of it.
DOOM = _script("""
subtract(id)
redis.call('ZREM', KEYS[9], id)
local idempotency = redis.call('HGET', KEYS[1], 'idempotency')
if idempotency then redis.call('DEL', idempotency) end
if not is_external() then return 0 end
remove_objects_at(now() + $REMOVED_AGAIN_S)
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
