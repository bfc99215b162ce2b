-- Takes up what others than our workers and processes of today left, and tidies the queues.
-- RQ's tools know workers by queues of a class and a model, without an owner. Before decision 32
-- shards waited there, and a lease was a score in RQ's set of started jobs. What lies in such a
-- queue goes to its owners' queues, scores that have lapsed become entries of `LEASES`, to be
-- reaped, and failed shards come into our set.
-- Nothing of ours uses RQ's intermediate lists: a stock `rq worker` that dies between taking an id
-- and starting it leaves the id there.
-- Another RQ application may have queues that are named as ours are. What is not ours stays there.
--
-- ARGV:
--   lease_s: seconds that an id may stay in an intermediate list
--   most_moved: shards that one call moves
--   classes*: of shards; queues of other names are other applications'
-- RESULT:
--   {1 if there is more to move else 0, ids of the shards that RQ's workers left, ...}
-- include: now, waiting
-- constants: FAILED_SHARDS, LEASES, QUEUES, QUEUE_NAMES, QUEUE_PREFIX, SHARD_PREFIX, SHORT_QUEUE
-- constants: STARTED_PREFIX, STONES

local call = redis.call
local lease_s, most_moved = tonumber(ARGV[1]), tonumber(ARGV[2])
local at, answer = now(), {0}

local is_class = {}
for i = 3, #ARGV do is_class[ARGV[i]] = true end

-- A shard is an RQ job whose description is its id. Other applications' describe the call.
local function is_shard(id) return call('HGET', SHARD_PREFIX .. id, 'description') == id end

local function is_foreign(id)
  return call('EXISTS', SHARD_PREFIX .. id) == 1 and not is_shard(id)
end

local function is_named_as_ours(queue)
  return string.sub(queue, 1, #QUEUE_NAMES) == QUEUE_NAMES
    and is_class[string.match(queue, '^([^:]*):', #QUEUE_NAMES + 1) or '']
end

local function move(key, queue)
  local started, failed = STARTED_PREFIX .. queue, 'rq:failed:' .. queue
  for _, member in ipairs(call('ZRANGEBYSCORE', started, '-inf', at)) do
    if is_shard(string.match(member, '^(.*):') or '') then
      call('ZREM', started, member)
      call('ZADD', LEASES, 'NX', 0, member)
    end
  end
  for _, id in ipairs(call('ZRANGE', failed, 0, -1)) do
    if is_shard(id) then
      call('ZREM', failed, id)
      call('SADD', FAILED_SHARDS, id)
    end
  end
  while most_moved > 0 do
    local id = call('LINDEX', key, 0)
    if not id or is_foreign(id) then break end
    call('LPOP', key)
    if is_shard(id) then put(id, false) end
    most_moved = most_moved - 1
  end
  if most_moved == 0 then answer[1] = 1 end
  leave_if_empty(queue)
end

local function rescue_one(intermediate, id)
  local first_seen = intermediate .. ':first_seen:' .. id
  local seen = call('GET', first_seen)
  if call('HGET', SHARD_PREFIX .. id, 'status') ~= 'queued' then
    call('LREM', intermediate, 1, id)
  elseif not seen then
    call('SET', first_seen, string.format('%.3f', at), 'EX', 3600)
  elseif at - seen >= lease_s then
    call('LREM', intermediate, 1, id)
    call('DEL', first_seen)
    put(id, true)
    answer[#answer + 1] = id
  end
end

local function rescue(key)
  local intermediate = key .. ':intermediate'
  for _, id in ipairs(call('LRANGE', intermediate, 0, -1)) do
    if not is_foreign(id) then rescue_one(intermediate, id) end
  end
end

-- Appends to `live` those of up to 64 ids whose shard is there. Most lists of 64 are all or none.
local function append_live(live, ids)
  local shards = {}
  for i, id in ipairs(ids) do shards[i] = SHARD_PREFIX .. id end
  local count = call('EXISTS', unpack(shards))
  for i, id in ipairs(count > 0 and ids or {}) do
    if count == #ids or call('EXISTS', shards[i]) == 1 then live[#live + 1] = id end
  end
end

-- Removes the stones of a queue that is long, and half of which they are.
local function compact(key, queue)
  local stones, length = tonumber(call('HGET', STONES, queue) or 0), call('LLEN', key)
  if stones <= SHORT_QUEUE or stones <= length / 2 then return end
  local live = {}
  for i = 0, length - 1, 64 do append_live(live, call('LRANGE', key, i, i + 63)) end
  call('DEL', key)
  for i = 1, #live, 1000 do call('RPUSH', key, unpack(live, i, math.min(i + 999, #live))) end
  call('HDEL', STONES, queue)
end

-- Corrects the rotation where a tool of RQ's has put ids into the queue or taken them out.
local function set_rotation(key, queue)
  local id = call('LINDEX', key, 0)
  if not id then
    leave_if_empty(queue)
  elseif not is_foreign(id) then
    join_rotation(queue, false)
  end
end

for _, key in ipairs(call('SMEMBERS', QUEUES)) do
  local queue = string.sub(key, #QUEUE_PREFIX + 1)
  if is_named_as_ours(queue) then
    rescue(key)
    if parts_of(queue) then
      compact(key, queue)
      set_rotation(key, queue)
    else
      move(key, queue)
    end
  end
end
return answer
