-- Takes the next shard from the first wanted queue that has one, and leases it to a worker.
-- An execution id that was used before gets the shard that it got then: the answer was lost, and
-- nobody else holds that shard.
-- Of interactive shards, the first whose owner has the fewest images in the worker goes first, so
-- that nobody waits behind the many jobs of somebody else.
--
-- KEYS:
--   executions: set of the worker's executions
--   queues*(waiting, started): list of a queue's shards that wait and sorted set of the executions
--     that run; the wanted queues by priority, then all others of the worker
-- ARGV:
--   execution: id under which the shard is leased
--   worker: its name
--   lease_s: seconds until the lease lapses
--   iso_now: time for RQ's fields
--   wanted: number of queues that a shard is wanted of
--   most_read: shards of a queue that are read
--   limits*(most, small): for each wanted queue, the images that an owner may hold already, and
--     the images of a shard for which that does not count
--   held*(owner, images): interactive images of each owner that the worker holds
-- RESULT:
--   {number of the queue from 0, id of the shard, its hash}, or false if nothing waits
-- include: now
-- constants: EXECUTIONS_PREFIX, EXECUTION_PREFIX, LEASES, SHARD_PREFIX

local call = redis.call
local executions = KEYS[1]
local execution, worker, lease_s, iso_now = unpack(ARGV, 1, 4)
local wanted, most_read = tonumber(ARGV[5]), tonumber(ARGV[6])
local at = now()

local held = {}
for i = 7 + 2 * wanted, #ARGV, 2 do held[ARGV[i]] = tonumber(ARGV[i + 1]) end

local function pop(waiting, most, small)
  if not (next(held) and string.find(waiting, ':interactive:', 1, true)) then
    return call('LPOP', waiting)
  end
  local chosen, least
  for _, id in ipairs(call('LRANGE', waiting, 0, most_read - 1)) do
    local owner, images = unpack(call('HMGET', SHARD_PREFIX .. id, 'owner', 'images'))
    local owned = owner and held[owner] or 0
    local is_allowed = owned <= most or tonumber(images or 0) <= small
    if is_allowed and (not least or owned < least) then chosen, least = id, owned end
    if least == 0 then break end
  end
  if chosen then call('LREM', waiting, 1, chosen) end
  return chosen or false
end

local function lease(id, shard, started)
  local member = id .. ':' .. execution
  local key, index = EXECUTION_PREFIX .. member, EXECUTIONS_PREFIX .. id
  local ttl = math.ceil(lease_s * 4)
  call('ZADD', LEASES, string.format('%.3f', at + lease_s), member)
  -- RQ's tools show it, and their clean-up, by the caller's clock, never takes it away
  call('ZADD', started, '+inf', member)
  call('HSET', key, 'id', execution, 'job_id', id, 'worker_name', worker,
    'created_at', string.format('%.6f', at), 'last_heartbeat', string.format('%.6f', at))
  call('ZADD', index, '+inf', execution)
  -- outlive the lease: RQ's Job.cancel and delete raise if the index outlives the hash
  call('EXPIRE', key, ttl)
  call('EXPIRE', index, ttl)
  call('SADD', executions, member)
  call('EXPIRE', executions, ttl)
  call('HSET', shard, 'status', 'started', 'started_at', iso_now, 'last_heartbeat', iso_now,
    'worker_name', worker)
  call('HDEL', shard, 'reason')
end

for _, member in ipairs(call('SMEMBERS', executions)) do
  local id = string.match(member, '^(.*):' .. execution .. '$')
  for i = 2, id and #KEYS or 0, 2 do
    if call('ZSCORE', KEYS[i + 1], member) and call('ZSCORE', LEASES, member) then
      return {(i - 2) / 2, id, call('HGETALL', SHARD_PREFIX .. id)}
    end
  end
end

for i = 2, 2 * wanted, 2 do
  local waiting, started = KEYS[i], KEYS[i + 1]
  local most, small = tonumber(ARGV[5 + i]), tonumber(ARGV[6 + i])
  local id = pop(waiting, most, small)
  while id do
    local shard = SHARD_PREFIX .. id
    -- anything but 'queued' is a deleted, cancelled or doubly pushed id: drop it (RQ would run it)
    if call('HGET', shard, 'status') == 'queued' then
      lease(id, shard, started)
      return {(i - 2) / 2, id, call('HGETALL', shard)}
    end
    id = pop(waiting, most, small)
  end
end
return false
