-- Ends the lease of a shard: deletes the shard, or puts it back into its queue.
-- A shard that was withdrawn is deleted in either case.
--
-- KEYS:
--   started: sorted set of the queue's executions that run
--   shard: hash of the shard, which is RQ's job
--   index: sorted set of the shard's executions
--   execution: hash of the execution
--   executions: set of the worker's executions
-- ARGV:
--   member: the lease, and the execution in `started` and `executions`
--   id: of the shard
--   mode: 'front' or 'back' to put it there in its queue, 'delete' to delete it
-- RESULT:
--   1, or 0 if the lease had lapsed: the worker is late, and the shard is somebody else's by now
-- include: lease_clock, requeue, waiting
-- constants: LEASES

local call = redis.call
local started, shard, index, execution, executions = unpack(KEYS)
local member, id, mode = unpack(ARGV)

if call('ZREM', LEASES, member) == 0 then return 0 end
forget_lease_time_if_unused()
call('ZREM', started, member)
call('DEL', index, execution)
call('SREM', executions, member)
if mode ~= 'delete' and call('HGET', shard, 'status') == 'started' then
  call('HSET', shard, 'status', 'queued', 'started_at', '', 'worker_name', '')
  put(id, mode == 'front')
else
  call('DEL', shard)
end
requeue_if_idle(id)
return 1
