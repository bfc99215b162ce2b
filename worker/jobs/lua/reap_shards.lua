-- Puts every shard whose lease has lapsed back at the front of its queue, or fails it.
-- A loss counts only if the lost worker got no further than any worker before it.
-- `reached` and `kept` in the shard's hash are the image-steps that were done, and that were saved,
-- at the losses before.
-- A worker that left more saved than it found is neither counted nor forgiven: it may not have come
-- to the point where those before it were lost.
-- An entry that is no lease of ours is dropped, and keeps no other from being reaped.
--
-- ARGV:
--   lease_s: seconds until an extended lease lapses
--   failed_ttl_s: seconds that a failed shard is kept
--   executions_template: key of a worker's set of executions, with {0} for the worker's name
--   most_losses: losses after which a shard fails
-- RESULT:
--   {id, 'requeued', 'failed' or 'dropped', ...}
-- include: counts, now, lease_clock, requeue, waiting
-- constants: EXECUTIONS_PREFIX, EXECUTION_PREFIX, FAILED_SHARDS, LEASES, QUEUES, QUEUE_PREFIX
-- constants: RECORD_PREFIX, SHARD_PREFIX, STARTED_PREFIX

local call = redis.call
local lease_s, failed_ttl_s, executions_template, most_losses = unpack(ARGV)
local outcomes, back = {}, {}

local function note(id, outcome)
  outcomes[#outcomes + 1] = id
  outcomes[#outcomes + 1] = outcome
end

local function retries_left(shard, id)
  local job, number = string.match(id, '^(.*)%-(%d+)$')
  local record = RECORD_PREFIX .. (job or '')
  local fields = {'p' .. (number or ''), 'k' .. (number or '')}
  local progress, saved = unpack(call('HMGET', record, unpack(fields)))
  local reached_before, kept_before = unpack(call('HMGET', shard, 'reached', 'kept'))
  local kept = tonumber(saved) or 0
  local reached = math.max(tonumber(string.match(progress or '', ',(%d+)')) or 0, kept)
  local is_further = reached > (tonumber(reached_before) or 0)
  local is_safer = kept > (tonumber(kept_before) or 0)
  if is_further then call('HSET', shard, 'reached', reached, 'retries_left', most_losses) end
  if is_safer then call('HSET', shard, 'kept', kept) end
  return call('HINCRBY', shard, 'retries_left', (is_further or is_safer) and 0 or -1)
end

-- Removes the execution from RQ's set of its queue, or from all if the shard's hash is gone.
local function forget_started(member, queue)
  if queue then return call('ZREM', STARTED_PREFIX .. queue, member) end
  for _, key in ipairs(call('SMEMBERS', QUEUES)) do
    call('ZREM', STARTED_PREFIX .. string.sub(key, #QUEUE_PREFIX + 1), member)
  end
end

local function reap(member)
  local id = string.match(member, '^(.+):[^:]*$')
  if not id then return note(member, 'dropped') end
  local shard, execution = SHARD_PREFIX .. id, EXECUTION_PREFIX .. member
  local status, queue = unpack(call('HMGET', shard, 'status', 'origin'))
  local worker = call('HGET', execution, 'worker_name')
  if worker then
    local executions = string.gsub(executions_template, '{0}', function() return worker end)
    call('SREM', executions, member)
  end
  call('DEL', execution, EXECUTIONS_PREFIX .. id)
  forget_started(member, queue)
  if status == 'started' then
    call('HINCRBY', shard, 'number_of_retries', 1)
    if retries_left(shard, id) > 0 then
      back[#back + 1] = {id = id, age = (call('HGET', shard, 'enqueued_at') or '') .. id}
    else
      call('HSET', shard, 'status', 'failed')
      call('EXPIRE', shard, failed_ttl_s)
      call('SADD', FAILED_SHARDS, id)
      call('EXPIRE', FAILED_SHARDS, failed_ttl_s)
      note(id, 'failed')
    end
  elseif status == 'canceled' then
    call('DEL', shard)
  end
end

for _, member in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', pass_lease_time(lease_s))) do
  -- first, since a full server refuses a script whose first write needs memory
  call('ZREM', LEASES, member)
  if not pcall(reap, member) then note(member, 'dropped') end
end

-- The oldest ends up at the very front, so the youngest is pushed first (ISO times sort as text).
table.sort(back, function(a, b) return a.age > b.age end)
for _, lost in ipairs(back) do
  local shard = SHARD_PREFIX .. lost.id
  call('HSET', shard, 'status', 'queued', 'started_at', '', 'worker_name', '')
  note(lost.id, pcall(put, lost.id, true) and 'requeued' or 'dropped')
end

forget_lease_time_if_unused()
for i = 1, #outcomes, 2 do pcall(requeue_if_idle, outcomes[i]) end
for i = 2, #outcomes, 2 do pcall(tally, 'loss ' .. outcomes[i]) end
return outcomes
