-- Prolongs the keys of jobs that wait or run for long, so that a job's life counts from its end.
-- Removes the open jobs whose record is gone: nobody prolonged it, as all processes were away.
-- The key `record` is the prefix of all jobs' records here.
--
-- ARGV:
--   first: rank of the first job to look at, by the time of its post
-- RESULT:
--   rank of the first job of the next call, 0 after the last job
-- include: listing, transition
-- constants: SHARD_IMAGES, SHARD_PREFIX, UNFINISHED_TTL_S

local call = redis.call
local first = tonumber(ARGV[1])
-- 0.2 ms of Redis
local AT_ONCE = 100

local function prolong(job)
  local its_record = record .. job
  local count, idempotency, external = unpack(call(
    'HMGET', its_record, 'count', 'idempotency', 'external'))
  for _, part in ipairs({'', ':sha256', ':png', ':chains'}) do
    call('EXPIRE', its_record .. part, UNFINISHED_TTL_S)
  end
  if idempotency then call('EXPIRE', idempotency, UNFINISHED_TTL_S) end
  for number = 0, math.ceil((count or 0) / SHARD_IMAGES) - 1 do
    call('EXPIRE', SHARD_PREFIX .. job .. '-' .. number, UNFINISHED_TTL_S)
  end
  if external then call('ZADD', expiring, math.floor(now() + UNFINISHED_TTL_S), job) end
  list_job(job)
end

local jobs = call('ZRANGE', open, first, first + AT_ONCE - 1)
local gone = 0
for _, job in ipairs(jobs) do
  local ttl = call('TTL', record .. job)
  if ttl == -2 then
    local owner = owner_of_open(job)
    if owner then unlist(owner, job) end
    subtract(job)
    call('ZREM', open, job)
    gone = gone + 1
  elseif ttl < UNFINISHED_TTL_S / 2 then
    prolong(job)
  end
end
return #jobs < AT_ONCE and 0 or first + AT_ONCE - gone
