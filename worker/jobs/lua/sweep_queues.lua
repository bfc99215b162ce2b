-- Takes up what others than our workers and processes of today left in RQ's keys.
-- Before decision 32 a lease was a score in RQ's set of started jobs: those that have lapsed become
-- entries of `LEASES`, to be reaped, and shards that failed come into our set.
-- Nothing of ours uses RQ's intermediate lists: a stock `rq worker` that dies between taking an id
-- and starting it leaves the id there.
--
-- ARGV:
--   lease_s: seconds that an id may stay in an intermediate list
--   classes*: of shards; other queues are other applications'
-- RESULT:
--   ids of the shards that went back to the front of their queue
-- include: now
-- constants: FAILED_SHARDS, LEASES, QUEUES, QUEUE_PREFIX, SHARD_PREFIX, STARTED_PREFIX

local call = redis.call
local lease_s = tonumber(ARGV[1])
local at, back = now(), {}

local is_ours = {}
for i = 2, #ARGV do is_ours[ARGV[i]] = true end

local function adopt_leases(queue)
  local started = STARTED_PREFIX .. queue
  for _, member in ipairs(call('ZRANGEBYSCORE', started, '-inf', at)) do
    call('ZREM', started, member)
    call('ZADD', LEASES, 'NX', 0, member)
  end
end

local function adopt_failed(queue)
  local failed = 'rq:failed:' .. queue
  for _, id in ipairs(call('ZRANGE', failed, 0, -1)) do
    call('ZREM', failed, id)
    call('SADD', FAILED_SHARDS, id)
  end
end

local function rescue(queue)
  local waiting = QUEUE_PREFIX .. queue
  local intermediate = waiting .. ':intermediate'
  for _, id in ipairs(call('LRANGE', intermediate, 0, -1)) do
    local first_seen = intermediate .. ':first_seen:' .. id
    local seen = call('GET', first_seen)
    if call('HGET', SHARD_PREFIX .. id, 'status') ~= 'queued' then
      call('LREM', intermediate, 1, id)
    elseif not seen then
      call('SET', first_seen, string.format('%.3f', at), 'EX', 3600)
    elseif at - seen >= lease_s then
      call('LREM', intermediate, 1, id)
      call('DEL', first_seen)
      call('LPUSH', waiting, id)
      back[#back + 1] = id
    end
  end
end

for _, key in ipairs(call('SMEMBERS', QUEUES)) do
  local queue = string.sub(key, #QUEUE_PREFIX + 1)
  if is_ours[string.match(queue, '^[^:]*')] then
    adopt_leases(queue)
    adopt_failed(queue)
    rescue(queue)
  end
end
return back
