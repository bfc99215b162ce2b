"""Where a queued job stands, and how long it will take."""

from __future__ import annotations

import json
from collections.abc import Iterable

from app.schemas import QueuePlace
from worker.contract import MAX_COUNT, SHARD_IMAGES, Priority, WorkerInfo, job_key, open_key, shard_count

# Jobs looked at before the one asked for. Everybody polls, and Redis does nothing else meanwhile: behind 40 jobs of 1024 images
# 0.08 ms for an interactive job and 0.4 ms for a bulk one, behind 255 of them 0.35 and 2.3 ms (INFO commandstats, one core).
_LOOK_BACK = 256

# KEYS: open sets, first served first. ARGV: id, prefix of job keys, images a shard, look-back, shards a job at most.
# -> false unless the job is queued, else {jobs before it, image-steps that its estimate counts, or -1 where they are too many}
QUEUE_PLACE = """
local function interactive_part(id)
  local job = redis.call('HMGET', ARGV[2] .. id, 'state', 'count', 'steps')
  if job[1] ~= 'queued' then return 0 end
  return math.min(job[2], ARGV[3]) * job[3]
end
local fields = {'count', 'steps'}
for k = 0, ARGV[5] - 1 do fields[#fields + 1] = 'p' .. k end
local function left(id)
  local job = redis.call('HMGET', ARGV[2] .. id, unpack(fields))
  if not job[1] then return 0 end
  local sum = job[1] * job[2]
  for i = 3, #fields do
    if job[i] then sum = sum - string.match(job[i], ',(%d+)') end
  end
  return sum
end
if redis.call('HGET', ARGV[2] .. ARGV[1], 'state') ~= 'queued' then return false end
local before, ahead = 0, {}
for _, open in ipairs(KEYS) do
  local rank = redis.call('ZRANK', open, ARGV[1])
  local last = rank or redis.call('ZCARD', open)
  before = before + last
  if before <= tonumber(ARGV[4]) and last > 0 then
    for _, id in ipairs(redis.call('ZRANGE', open, 0, last - 1)) do ahead[#ahead + 1] = id end
  end
  if rank then break end
end
if before > tonumber(ARGV[4]) then return {before, -1} end
local work = left(ARGV[1])
local of_one = redis.call('HGET', ARGV[2] .. ARGV[1], 'priority') == 'interactive' and interactive_part or left
for _, id in ipairs(ahead) do work = work + of_one(id) end
return {before, work}"""

PLACE_KEYS = [open_key(Priority.INTERACTIVE), open_key(Priority.BULK)]


def place_args(job: str) -> list[str | int]:
    return [job, job_key(""), SHARD_IMAGES, _LOOK_BACK, shard_count(MAX_COUNT)]


def queue_place(answer: tuple[int, int] | None, model: str, workers: Iterable[WorkerInfo]) -> QueuePlace | None:
    if answer is None:
        return None
    position, image_steps = answer
    rate = sum(worker.image_steps_per_s for worker in workers if model in worker.models)
    eta_s = round(image_steps / rate, 1) if rate > 0 and image_steps >= 0 else None
    return QueuePlace(position=position, eta_s=eta_s)


def alive(workers: Iterable[bytes], now: float) -> list[WorkerInfo]:
    """Those that have not outlived what they last said of themselves."""
    infos = (WorkerInfo(**json.loads(worker)) for worker in workers)
    return sorted((info for info in infos if info.until > now), key=lambda info: info.name)
