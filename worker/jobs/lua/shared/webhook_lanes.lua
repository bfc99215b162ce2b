-- Webhooks by owner and receiver, so that neither an owner nor a dead receiver holds up others.
-- A lane is a sorted set of an owner's jobs whose webhooks go to one receiver, by when each is due.
-- Above the lanes of an owner is a sorted set of its receivers, and above those one of the owners.
-- Each has the earliest time of what is below it.
-- include: now
-- constants: RECORD_TTL_S, WEBHOOK_LANE_PREFIX, WEBHOOK_OWNERS, WEBHOOK_RECEIVERS_PREFIX

-- Returns host and port of a job's webhook, as the URL has them; nil if the job has none.
local function receiver_of(url)
  local authority = string.match(url or '', '^%a+://([^/?#]+)')
  return authority and string.lower(authority)
end

local function lane_key(owner, receiver)
  return WEBHOOK_LANE_PREFIX .. owner .. ':' .. receiver
end

-- Gives `member` of the sorted set `above` the earliest time in `below`.
local function lift(below, above, member)
  local first = redis.call('ZRANGE', below, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', above, first[2], member)
  else
    redis.call('ZREM', above, member)
  end
  -- where no API has a secret, nobody takes anything out
  redis.call('EXPIRE', below, RECORD_TTL_S)
  redis.call('EXPIRE', above, RECORD_TTL_S)
end

-- Makes a job's webhook due at `due`, or never if that is nil.
local function set_due(owner, receiver, job, due)
  local lane, receivers = lane_key(owner, receiver), WEBHOOK_RECEIVERS_PREFIX .. owner
  if due then
    redis.call('ZADD', lane, due, job)
  else
    redis.call('ZREM', lane, job)
  end
  lift(lane, receivers, receiver)
  lift(receivers, WEBHOOK_OWNERS, owner)
end
