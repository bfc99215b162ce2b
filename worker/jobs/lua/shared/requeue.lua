-- Function `requeue_if_idle(shard, shard_prefix, record_prefix)`: a change of a job's state.
-- A job is running while a worker holds a shard of it.
-- So every script that takes a shard from its worker ends with this function.
-- It sets the shard's job back to queued if the job runs and no worker holds a shard of it.
-- The prefixes are those of the keys of shards (RQ's jobs) and of our jobs' records.
-- constants: CHANGES, SHARD_IMAGES

local function requeue_if_idle(shard, shard_prefix, record_prefix)
  local job = string.match(shard, '^(.*)%-%d+$')
  local state, count = unpack(redis.call('HMGET', record_prefix .. (job or ''), 'state', 'count'))
  if state ~= 'running' then return end
  for number = 0, math.ceil(count / SHARD_IMAGES) - 1 do
    local status = redis.call('HGET', shard_prefix .. job .. '-' .. number, 'status')
    if status == 'started' then return end
  end
  redis.call('HSET', record_prefix .. job, 'state', 'queued')
  redis.call('PUBLISH', CHANGES, job .. ' queued')
end
