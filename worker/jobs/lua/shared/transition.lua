-- Functions of the scripts that change a job's state, with the keys that all of them take.
-- `external` in a job's record: some of its PNGs may lie in the results store.
-- A PNG is written there before its hash is written here.
--
-- KEYS:
--   record: hash of the job
--   hashes: hash from image index to sha256
--   pngs: hash from image index to PNG
--   open: sorted set of the open jobs of the job's priority
--   chains: hash of the job's saved chains
--   expiring: sorted set of the jobs whose objects in the results store are to be removed
--   left: hash from open job to the image-steps that are left of it, and what they are of
--   load: hash from owner to the image-steps that are left of all its open jobs
--   webhooks: sorted set of the jobs whose webhook is to be sent
-- include: bundles, counts, kept, listing, now
-- constants: CHANGES, RECORD_TTL_S

local record, hashes, pngs, open, chains = unpack(KEYS, 1, 5)
local expiring, left, load, webhooks = unpack(KEYS, 6, 9)
local id = string.match(record, '[^:]+$')

local function stamp() return string.format('%.6f', now()) end

local function state() return redis.call('HGET', record, 'state') end

local function is_open()
  local current = state()
  return current == 'queued' or current == 'running'
end

local function is_external() return redis.call('HGET', record, 'external') end

local function remove_objects_at(due) redis.call('ZADD', expiring, math.floor(due), id) end

-- Returns the owner of an open job, whose record may be gone.
local function owner_of_open(job)
  return string.match(redis.call('HGET', left, job) or '', '^%S+ %S+ %S+ %S+ (.*)$')
end

-- Subtracts image-steps from what is left of the job, and from its owner's sum.
-- Without `image_steps` it subtracts all that is left and removes the job's entry.
-- So nothing of a job can be subtracted twice.
local function subtract(job, image_steps)
  local entry = redis.call('HGET', left, job) or ''
  local remaining, about, owner = string.match(entry, '^(%S+) (%S+ %S+ %S+ (.*))$')
  if not remaining then return end
  if image_steps then
    redis.call('HSET', left, job, (remaining - image_steps) .. ' ' .. about)
  else
    redis.call('HDEL', left, job)
  end
  -- not -x: of 0 that is "-0", which Redis 7.0 takes for no integer
  if redis.call('HINCRBY', load, owner, 0 - (image_steps or remaining)) <= 0 then
    redis.call('HDEL', load, owner)
  end
end

-- Ends the job in the final state `to`.
local function finish(to)
  local ttl = tonumber(redis.call('HGET', record, 'results_ttl_s'))
  set_state(id, to)
  redis.call('HSET', record, 'finished_at', stamp())
  redis.call('EXPIRE', pngs, ttl)
  redis.call('EXPIRE', record, ttl + RECORD_TTL_S)
  redis.call('EXPIRE', hashes, ttl + RECORD_TTL_S)
  if is_external() then remove_objects_at(now() + ttl) end
  local owner, bytes = unpack(redis.call('HMGET', record, 'owner', 'bytes'))
  if owner then keep_bytes(id, owner, tonumber(bytes or 0), now() + ttl) end
  forget_all_chains(chains)
  redis.call('ZREM', open, id)
  local idempotency = redis.call('HGET', record, 'idempotency')
  if idempotency then redis.call('EXPIRE', idempotency, ttl + RECORD_TTL_S) end
  subtract(id)
  if redis.call('HEXISTS', record, 'webhook') == 1 then
    redis.call('ZADD', webhooks, stamp(), id)
    -- where no API has a secret, nobody takes it out
    redis.call('EXPIRE', webhooks, RECORD_TTL_S)
  end
  redis.call('PUBLISH', CHANGES, id .. ' ' .. to)
  local about = redis.call('HMGET', record, 'error_code', 'priority', 'model')
  for i = 1, 3 do about[i] = about[i] or '-' end
  tally('job ' .. to .. ' ' .. table.concat(about, ' '))
end
