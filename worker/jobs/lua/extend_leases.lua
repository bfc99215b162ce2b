-- Notes a worker's heartbeat, and extends all its leases.
-- It writes only to keys that exist: a bare HSET would create them again for ever.
--
-- KEYS:
--   worker: hash of the worker, which is RQ's
--   executions: set of its executions
--   shards*(shard, execution, index): the shard's hash, the execution's hash, and the sorted set of
--     the shard's executions
-- ARGV:
--   worker_ttl_s: seconds until the worker's key expires
--   lease_s: seconds until the leases lapse
--   iso_now: time for RQ's fields
--   state: of the worker, 'busy' or 'idle'
--   members*: the lease of each shard
-- RESULT:
--   {1 if the worker is registered else 0, then of each shard 'mine', 'lost' or 'cancelled'}
-- include: now, lease_clock
-- constants: LEASES

local call = redis.call
local worker, executions = KEYS[1], KEYS[2]
local worker_ttl_s, lease_s, iso_now, state = unpack(ARGV, 1, 4)
local at, ttl = now(), math.ceil(lease_s * 4)

local answer = {call('EXISTS', worker)}
-- first, since a full server refuses a script whose first write needs memory; and then all leases
-- would lapse
call('EXPIRE', executions, ttl)
if answer[1] == 1 then
  call('HSET', worker, 'last_heartbeat', iso_now, 'state', state)
  call('EXPIRE', worker, worker_ttl_s)
end
local lapses = string.format('%.3f', pass_lease_time(lease_s) + lease_s)
for n = 1, #ARGV - 4 do
  local shard, execution, index = unpack(KEYS, 3 * n, 3 * n + 2)
  local member = ARGV[n + 4]
  if not call('ZSCORE', LEASES, member) then
    answer[n + 1] = 'lost'
  else
    call('ZADD', LEASES, 'XX', lapses, member)
    if call('EXISTS', execution) == 1 then
      call('HSET', execution, 'last_heartbeat', string.format('%.6f', at))
    end
    call('EXPIRE', execution, ttl)
    call('EXPIRE', index, ttl)
    answer[n + 1] = call('HGET', shard, 'status') == 'started' and 'mine' or 'cancelled'
  end
end
return answer
