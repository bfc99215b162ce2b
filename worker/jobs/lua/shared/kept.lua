-- Functions on what the images of jobs take, wherever they lie, and for how long.
-- An open job counts as what its images may take at most, one that has ended as what they take.
-- The sum of an owner changes only together with an entry, so nothing is subtracted twice.
-- include: now
-- constants: KEPT, KEPT_BY_OWNER, KEPT_UNTIL, RECORD_PREFIX, RECORD_TTL_S, UNFINISHED_TTL_S

-- Returns the bytes of a job and its owner; nothing where it has no entry.
local function kept_of(job)
  local bytes, owner = string.match(redis.call('HGET', KEPT, job) or '', '^(%d+) (.*)$')
  return tonumber(bytes), owner
end

local function forget_bytes(job)
  local bytes, owner = kept_of(job)
  if not bytes then return end
  -- a full server refuses it: then the entry stays, and is met again
  local left = redis.pcall('HINCRBY', KEPT_BY_OWNER, owner, 0 - bytes)
  if type(left) ~= 'number' then return end
  if left <= 0 then redis.call('HDEL', KEPT_BY_OWNER, owner) end
  redis.call('HDEL', KEPT, job)
  redis.call('ZREM', KEPT_UNTIL, job)
end

-- Counts a job as so many bytes, until `gone_at`.
local function keep_bytes(job, owner, bytes, gone_at)
  if bytes <= 0 then return forget_bytes(job) end
  redis.call('HINCRBY', KEPT_BY_OWNER, owner, bytes - (kept_of(job) or 0))
  redis.call('HSET', KEPT, job, string.format('%d %s', bytes, owner))
  redis.call('ZADD', KEPT_UNTIL, math.ceil(gone_at), job)
  -- where no process runs any more, nobody empties them
  local ttl = math.ceil(gone_at - now()) + RECORD_TTL_S
  for _, key in ipairs({KEPT, KEPT_BY_OWNER, KEPT_UNTIL}) do
    redis.call('EXPIRE', key, ttl, 'NX')
    redis.call('EXPIRE', key, ttl, 'GT')
  end
end

-- Forgets the jobs whose images are gone by now, `most` of them at most.
local function forget_expired_bytes(at, most)
  for _, job in ipairs(redis.call('ZRANGE', KEPT_UNTIL, '-inf', at, 'BYSCORE', 'LIMIT', 0, most)) do
    local state = redis.call('HGET', RECORD_PREFIX .. job, 'state')
    if state == 'queued' or state == 'running' then
      redis.call('ZADD', KEPT_UNTIL, math.ceil(at + UNFINISHED_TTL_S), job)
    else
      forget_bytes(job)
    end
  end
end
