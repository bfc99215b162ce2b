-- Ends a shard of which nothing is left to do: deletes every key of it, and its saved chains.
-- That is so if all its images have their hashes, or if its job has ended or is gone.
-- After the last image was published it may not be so, because the server may have been restored to
-- an earlier moment; then nothing is changed.
--
-- KEYS:
--   started: sorted set of the queue's executions that run
--   shard: hash of the shard, which is RQ's job
--   index: sorted set of the shard's executions
--   execution: hash of the execution
--   executions: set of the worker's executions
--   record: hash of the job
--   hashes: hash from image index to sha256
--   chains: hash of the job's saved chains
-- ARGV:
--   member: the lease, and the execution in `started` and `executions`
--   id: of the shard
--   number: of the shard in its job
--   first: index of its first image
--   count: of its images
-- RESULT:
--   'finished'; 'lost' if the lease had lapsed, and 'unsettled' if an image has no hash
-- include: bundles, lease_clock, requeue
-- constants: LEASES

local call = redis.call
local started, shard, index, execution, executions, record, hashes, chains = unpack(KEYS)
local member, id, number, first, count = unpack(ARGV)

if not call('ZSCORE', LEASES, member) then return 'lost' end
local state = call('HGET', record, 'state')
if state == 'queued' or state == 'running' then
  for image = tonumber(first), first + count - 1 do
    if call('HEXISTS', hashes, string.format('%.0f', image)) == 0 then return 'unsettled' end
  end
end
call('ZREM', LEASES, member)
forget_lease_time_if_unused()
call('ZREM', started, member)
call('DEL', index, execution, shard)
call('SREM', executions, member)
forget_chains(chains, number)
requeue_if_idle(id)
return 'finished'
