-- Function `requeue_if_idle(shard)`: a change of a job's state.
-- A job is running while a worker holds a shard of it.
-- So every script that takes a shard from its worker ends with this function.
-- It sets the shard's job back to queued if the job runs and no worker holds a shard of it.
-- include: listing
-- constants: CHANGES, RECORD_PREFIX, SHARD_IMAGES, SHARD_PREFIX

local function requeue_if_idle(shard)
  local job = string.match(shard, '^(.*)%-%d+$')
  if not job then return end
  local state, count = unpack(redis.call('HMGET', RECORD_PREFIX .. job, 'state', 'count'))
  if state ~= 'running' then return end
  for number = 0, math.ceil(count / SHARD_IMAGES) - 1 do
    local status = redis.call('HGET', SHARD_PREFIX .. job .. '-' .. number, 'status')
    if status == 'started' then return end
  end
  set_state(job, 'queued')
  redis.call('PUBLISH', CHANGES, job .. ' queued')
end
