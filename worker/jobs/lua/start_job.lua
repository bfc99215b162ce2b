-- Sets a job to running, because a worker has taken a shard of it.
--
-- KEYS:
--   leases?: sorted set of the executions that hold a lease
-- ARGV:
--   attempt: number of this attempt at the shard, from 1
--   external: 1 if the worker has a results store, else 0
--   lease?: the worker's execution; nothing starts unless it is in `leases`
-- RESULT:
--   'running', or the job's final state, or false if the job is gone or the lease is lost
-- include: transition
-- constants: CHANGES, UNFINISHED_TTL_S

local leases = KEYS[10]
local attempt, external, lease = unpack(ARGV, 1, 3)

if leases and not redis.call('ZSCORE', leases, lease) then return false end
if not is_open() then return state() end
if tonumber(attempt) > tonumber(redis.call('HGET', record, 'attempts')) then
  redis.call('HSET', record, 'attempts', attempt)
end
if external == '1' and not is_external() then
  redis.call('HSET', record, 'external', 1)
  remove_objects_at(now() + UNFINISHED_TTL_S)
end
if state() == 'queued' then
  redis.call('HSET', record, 'state', 'running')
  redis.call('HSETNX', record, 'started_at', stamp())
  redis.call('PUBLISH', CHANGES, id .. ' running')
end
return state()
