-- Puts every shard of a queue whose lease has lapsed back at the front, or fails it.
-- A loss counts only if the lost worker got no further than any worker before it.
-- `reached` and `kept` in the shard's hash are the image-steps that were done, and that were saved,
-- at the losses before.
-- A worker that left more saved than it found is neither counted nor forgiven: it may not have come
-- to the point where those before it were lost.
--
-- KEYS:
--   started: sorted set of the queue's executions that run
--   waiting: list of the queue's shards that wait
--   intermediate: list of RQ's workers between taking a job and starting it
--   failed: sorted set of the queue's shards that failed
-- ARGV:
--   lease_s: seconds that an id may stay in `intermediate`
--   failed_ttl_s: seconds that a failed shard is kept
--   shard_prefix: of the keys of shards, which are RQ's jobs
--   execution_prefix: of the keys of executions
--   index_prefix: of the keys of a shard's executions
--   seen_prefix: of the keys of when an id was first seen in `intermediate`
--   executions_template: key of a worker's set of executions, with {0} for the worker's name
--   most_losses: losses after which a shard fails
--   record_prefix: of the keys of jobs' records
-- RESULT:
--   {id, 'requeued' or 'failed', ...}
-- include: now, requeue

local call = redis.call
local started, waiting, intermediate, failed = unpack(KEYS)
local lease_s, failed_ttl_s, shard_prefix, execution_prefix = unpack(ARGV, 1, 4)
local index_prefix, seen_prefix, executions_template = unpack(ARGV, 5, 7)
local most_losses, record_prefix = unpack(ARGV, 8, 9)
local at = now()
local outcomes, back = {}, {}

local function note(id, outcome)
  outcomes[#outcomes + 1] = id
  outcomes[#outcomes + 1] = outcome
end

local function retries_left(shard, id)
  local job, number = string.match(id, '^(.*)%-(%d+)$')
  local record = record_prefix .. job
  local progress, saved = unpack(call('HMGET', record, 'p' .. number, 'k' .. number))
  local reached_before, kept_before = unpack(call('HMGET', shard, 'reached', 'kept'))
  local kept = tonumber(saved) or 0
  local reached = math.max(tonumber(string.match(progress or '', ',(%d+)')) or 0, kept)
  local is_further = reached > (tonumber(reached_before) or 0)
  local is_safer = kept > (tonumber(kept_before) or 0)
  if is_further then call('HSET', shard, 'reached', reached, 'retries_left', most_losses) end
  if is_safer then call('HSET', shard, 'kept', kept) end
  return call('HINCRBY', shard, 'retries_left', (is_further or is_safer) and 0 or -1)
end

for _, member in ipairs(call('ZRANGEBYSCORE', started, '-inf', at)) do
  local id = string.match(member, '^(.*):.*$')
  local shard, execution = shard_prefix .. id, execution_prefix .. member
  local status, worker = call('HGET', shard, 'status'), call('HGET', execution, 'worker_name')
  if worker then
    local executions = string.gsub(executions_template, '{0}', function() return worker end)
    call('SREM', executions, member)
  end
  call('ZREM', started, member)
  call('DEL', execution, index_prefix .. id)
  if status == 'started' then
    call('HINCRBY', shard, 'number_of_retries', 1)
    if retries_left(shard, id) > 0 then
      back[#back + 1] = id
    else
      call('HSET', shard, 'status', 'failed')
      call('EXPIRE', shard, failed_ttl_s)
      call('ZADD', failed, math.floor(at + failed_ttl_s), id)
      note(id, 'failed')
    end
  elseif status == 'canceled' then
    call('DEL', shard)
  end
end

-- Nothing of ours uses the intermediate list; a stock rq worker that dies between LMOVE and start
-- leaves ids there.
for _, id in ipairs(call('LRANGE', intermediate, 0, -1)) do
  local seen = call('GET', seen_prefix .. id)
  if call('HGET', shard_prefix .. id, 'status') ~= 'queued' then
    call('LREM', intermediate, 1, id)
  elseif not seen then
    call('SET', seen_prefix .. id, string.format('%.3f', at), 'EX', 3600)
  elseif at - seen >= tonumber(lease_s) then
    call('LREM', intermediate, 1, id)
    call('DEL', seen_prefix .. id)
    back[#back + 1] = id
  end
end

-- The oldest ends up at the very front, so the youngest is pushed first (ISO times sort as text).
local age = {}
for _, id in ipairs(back) do
  age[id] = (call('HGET', shard_prefix .. id, 'enqueued_at') or '') .. id
end
table.sort(back, function(a, b) return age[a] > age[b] end)
for _, id in ipairs(back) do
  call('HSET', shard_prefix .. id, 'status', 'queued', 'started_at', '', 'worker_name', '')
  call('LPUSH', waiting, id)
  note(id, 'requeued')
end

for i = 1, #outcomes, 2 do requeue_if_idle(outcomes[i], shard_prefix, record_prefix) end
return outcomes
