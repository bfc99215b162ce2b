-- Sets a job to running, because a worker has taken a shard of it.
-- The fingerprint of the first worker stands in its record, and workers of that one draw the job.
-- When none of them lives, the job is another one's from then on, and not uniform.
--
-- KEYS:
--   leases?: sorted set of the executions that hold a lease
-- ARGV:
--   number: of the shard in its job
--   attempt: number of this attempt at the shard, from 1
--   external: 1 if the worker has a results store, else 0
--   fingerprint: the worker's for the job's model; empty if it has none
--   others: those of the other living workers that have the model, separated by spaces
--   lease?: the worker's execution; nothing starts unless it is in `leases`
-- RESULT:
--   {'running', 1 if chains of the shard are saved, index of each of the job's images with a hash};
--   {state} if the job has ended, and {'elsewhere'} if it is for one of the others;
--   false if the job is gone or the lease is lost. Then nothing was started
-- include: transition
-- constants: CHANGES, UNFINISHED_TTL_S

local leases = KEYS[10]
local number, attempt, external, fingerprint, others, lease = unpack(ARGV, 1, 6)

if leases and not redis.call('ZSCORE', leases, lease) then return false end
if not state() then return false end
if not is_open() then return {state()} end
local drawn_by = redis.call('HGET', record, 'fingerprint')
if fingerprint ~= '' and drawn_by ~= fingerprint then
  if drawn_by and string.find(others, drawn_by, 1, true) then return {'elsewhere'} end
  redis.call('HSET', record, 'fingerprint', fingerprint)
  if drawn_by then redis.call('HSET', record, 'uniform', 0) end
end
if tonumber(attempt) > tonumber(redis.call('HGET', record, 'attempts')) then
  redis.call('HSET', record, 'attempts', attempt)
end
if external == '1' and not is_external() then
  redis.call('HSET', record, 'external', 1)
  remove_objects_at(now() + UNFINISHED_TTL_S)
end
if state() == 'queued' then
  set_state(id, 'running')
  redis.call('HSETNX', record, 'started_at', stamp())
  redis.call('PUBLISH', CHANGES, id .. ' running')
end
return {'running', redis.call('HEXISTS', chains, number), unpack(redis.call('HKEYS', hashes))}
