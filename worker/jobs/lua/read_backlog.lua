-- Reads for Prometheus what waits: the oldest queued jobs, and the webhooks that are not settled.
-- In each queue the first shards are the oldest. Of those, it takes the first whose job is queued.
--
-- KEYS:
--   webhooks: sorted set of the jobs whose webhook was not noticed yet (keys.WEBHOOKS)
-- ARGV:
--   most_queues: queues that are looked at for each class and model, so that a call ends soon
--   most_shards: shards that are looked at in each queue
--   rotations*: class and model, as `keys.rotation_name` writes them
-- RESULT:
--   {webhooks, then of each rotation the seconds since its oldest queued job was posted, as text,
--   which is empty if there is none, ...}
-- include: now
-- constants: QUEUE_PREFIX, RECORD_PREFIX, ROTATION_PREFIX
-- constants: WEBHOOK_LANE_PREFIX, WEBHOOK_OWNERS, WEBHOOK_RECEIVERS_PREFIX

local call = redis.call
local most_queues, most_shards = tonumber(ARGV[1]), tonumber(ARGV[2])
local at = now()

local function webhooks()
  local sum = call('ZCARD', KEYS[1])
  for _, owner in ipairs(call('ZRANGE', WEBHOOK_OWNERS, 0, most_queues - 1)) do
    local receivers = call('ZRANGE', WEBHOOK_RECEIVERS_PREFIX .. owner, 0, most_queues - 1)
    for _, receiver in ipairs(receivers) do
      sum = sum + call('ZCARD', WEBHOOK_LANE_PREFIX .. owner .. ':' .. receiver)
    end
  end
  return sum
end

-- Returns when the oldest queued job of a queue was posted.
local function posted_at(queue)
  for _, shard in ipairs(call('LRANGE', QUEUE_PREFIX .. queue, 0, most_shards - 1)) do
    local record = RECORD_PREFIX .. (string.match(shard, '^(.*)%-%d+$') or '')
    local state, created_at = unpack(call('HMGET', record, 'state', 'created_at'))
    if state == 'queued' then return tonumber(created_at) end
  end
end

local function oldest(rotation)
  local first
  for _, owner in ipairs(call('ZRANGE', ROTATION_PREFIX .. rotation, 0, most_queues - 1)) do
    local posted = posted_at(rotation .. ':' .. owner)
    if posted and (not first or posted < first) then first = posted end
  end
  return first and string.format('%.3f', math.max(0, at - first)) or ''
end

local answer = {webhooks()}
for i = 3, #ARGV do answer[#answer + 1] = oldest(ARGV[i]) end
return answer
