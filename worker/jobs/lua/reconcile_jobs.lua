-- Sets right what lost keys have left behind: evicted ones, or those that somebody has deleted.
-- It looks at some open jobs of a priority, and at some entries of `left`. The key `record` is the
-- prefix of all jobs' records here.
-- Where a shard's hash is gone although images of it are not finished, the caller posts it again:
-- only the record's reader knows how.
--
-- ARGV:
--   offset: rank of the first job to look at
--   most: jobs to look at
--   cursor: of the scan of `left`
--   priority: of the jobs
--   failed_ttl_s: seconds that a failed shard is kept
-- RESULT:
--   {next offset, 0 at the end; next cursor; ids of shards without a hash;
--   {id, what was done, ...}}
-- include: listing, requeue, waiting, transition
-- constants: FAILED_SHARDS, LEASES, QUEUES, QUEUE_PREFIX, SHARD_IMAGES, SHARD_PREFIX, SHORT_QUEUE

local call = redis.call
local offset, most, cursor = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local priority, failed_ttl_s = ARGV[4], ARGV[5]
local gone, done, leased = {}, {}, {}

local function note(what, outcome)
  done[#done + 1] = what
  done[#done + 1] = outcome
end

for _, member in ipairs(call('ZRANGE', LEASES, 0, -1)) do
  leased[string.match(member, '^(.+):[^:]*$') or ''] = true
end

local function forget(job)
  local owner = owner_of_open(job)
  subtract(job)
  call('ZREM', open, job)
  if owner then unlist(owner, job) end
  local key = record .. job
  forget_all_chains(key .. ':chains')
  call('DEL', key .. ':sha256', key .. ':png')
  note(job, 'forgotten, as its record is gone')
end

-- Counts a job's work again whose entry in `left` is gone.
local function count_again(job)
  local count, steps, model, owner, cost, guidance =
    unpack(call('HMGET', record .. job, 'count', 'steps', 'model', 'owner', 'cost', 'guidance'))
  if not (count and steps and model and owner) then return end
  local image_steps = count * steps
  for number = 0, math.ceil(count / SHARD_IMAGES) - 1 do
    local progress = call('HGET', record .. job, 'p' .. number)
    image_steps = image_steps - (tonumber(string.match(progress or '', ',(%d+)')) or 0)
  end
  local work = string.format('%d', image_steps * (cost or 1))
  -- A guided image takes two passes of the network a step (Recipe.passes).
  local passes = guidance and steps * 2 or steps
  call('HSET', left, job, table.concat({work, count, passes, model, owner}, ' '))
  note(job, 'counted again')
end

local function lacks_image(job, first, images)
  local indices = {}
  for index = first, first + images - 1 do
    indices[#indices + 1] = string.format('%d', index)
  end
  for _, sha256 in ipairs(call('HMGET', record .. job .. ':sha256', unpack(indices))) do
    if not sha256 then return true end
  end
end

-- A long queue is not searched: what is missing there is found when it is shorter.
local function is_in_queue(shard, queue)
  local key = QUEUE_PREFIX .. queue
  if call('EXISTS', key .. ':intermediate') == 1 or call('LLEN', key) > SHORT_QUEUE then
    return true
  end
  return call('LPOS', key, shard)
end

local function look_at_shard(job, number, first, images)
  local shard = job .. '-' .. number
  local key = SHARD_PREFIX .. shard
  local status, queue = unpack(call('HMGET', key, 'status', 'origin'))
  if not status then
    if not leased[shard] and lacks_image(job, first, images) then gone[#gone + 1] = shard end
  elseif status == 'started' and not leased[shard] then
    call('HSET', key, 'status', 'queued', 'started_at', '', 'worker_name', '')
    put(shard, true)
    note(shard, 'requeued, as its lease is gone')
  elseif status == 'queued' and not is_in_queue(shard, queue) then
    put(shard, false)
    note(shard, 'requeued, as its queue has lost it')
  elseif status == 'queued' then
    call('SADD', QUEUES, QUEUE_PREFIX .. queue)
    join_rotation(queue, false)
  elseif status == 'failed' then
    call('SADD', FAILED_SHARDS, shard)
    call('EXPIRE', FAILED_SHARDS, failed_ttl_s)
  end
end

local function look_at(job)
  local current, count, start = unpack(call('HMGET', record .. job, 'state', 'count', 'start'))
  if not (current and count) then return forget(job) end
  if current ~= 'queued' and current ~= 'running' then
    subtract(job)
    call('ZREM', open, job)
    list_job(job)
    return note(job, 'closed, as it has ended')
  end
  if call('HEXISTS', left, job) == 0 then count_again(job) end
  start = tonumber(start or 0)
  for number = 0, math.ceil(count / SHARD_IMAGES) - 1 do
    local first = number * SHARD_IMAGES
    look_at_shard(job, number, start + first, math.min(SHARD_IMAGES, count - first))
  end
  requeue_if_idle(job .. '-0')
  list_job(job)
end

local jobs = call('ZRANGE', open, offset, offset + most - 1)
for _, job in ipairs(jobs) do
  if not pcall(look_at, job) then note(job, 'left alone, as a key of it is of another kind') end
end

-- What `left` has and the open jobs lack.
local next_cursor, entries = unpack(call('HSCAN', left, cursor, 'COUNT', most))
for i = 1, #entries, 2 do
  local job = entries[i]
  local current, its, created_at =
    unpack(call('HMGET', record .. job, 'state', 'priority', 'created_at'))
  if not current then
    forget(job)
  elseif its == priority and (current == 'queued' or current == 'running')
    and not call('ZSCORE', open, job) then
    call('ZADD', open, created_at, job)
    note(job, 'listed again')
  end
end

-- The sums of owners, where they are few enough to be made anew.
if next_cursor == '0' and call('HLEN', left) <= 1000 then
  local sums = {}
  for _, entry in ipairs(call('HVALS', left)) do
    local work, owner = string.match(entry, '^(%S+) %S+ %S+ %S+ (.*)$')
    if work then sums[owner] = (sums[owner] or 0) + work end
  end
  for _, owner in ipairs(call('HKEYS', load)) do
    if not sums[owner] then call('HDEL', load, owner) end
  end
  for owner, work in pairs(sums) do
    if tonumber(call('HGET', load, owner) or 0) ~= work then
      call('HSET', load, owner, string.format('%d', work))
    end
  end
end
return {#jobs < most and 0 or offset + most, next_cursor, gone, done}
