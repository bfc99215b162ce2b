"""Where a queued job stands, and how long it will take."""

from __future__ import annotations

import json
from collections.abc import Iterable

from app.schemas import QueuePlace
from worker.contract import SHARD_IMAGES, Priority, WorkerInfo, job_key, open_key

# Jobs looked at before the one asked for: some 100 us of the server's time, and everybody polls.
_LOOK_BACK = 256

# KEYS: open sets, first served first. ARGV: id, prefix of job keys, images a shard, look-back.
# -> false unless the job is queued, else {jobs before it, image-steps left of them and of itself, or -1 where they are too many}
QUEUE_PLACE = """
local function left(id)
  local key = ARGV[2] .. id
  local job = redis.call('HMGET', key, 'count', 'steps')
  if not job[1] then return 0 end
  local sum = job[1] * job[2]
  for k = 0, math.ceil(job[1] / ARGV[3]) - 1 do
    local progress = redis.call('HGET', key, 'p' .. k)
    if progress then sum = sum - string.match(progress, ',(%d+)') end
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
for _, id in ipairs(ahead) do work = work + left(id) end
return {before, work}"""

PLACE_KEYS = [open_key(Priority.INTERACTIVE), open_key(Priority.BULK)]


def place_args(job: str) -> list[str | int]:
    return [job, job_key(""), SHARD_IMAGES, _LOOK_BACK]


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
