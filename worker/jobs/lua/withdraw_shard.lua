-- Removes a shard that waits, or tells the worker that runs it to drop it.
-- In a long queue its id stays as a stone, since to find it would cost what the queue is long.
-- RQ's Job.cancel would leave the hash, and an entry in rq:canceled, for ever.
--
-- ARGV:
--   id: of the shard
-- RESULT:
--   'absent', 'removed' (it waited) or 'signalled' (its worker drops it)
-- include: waiting
-- constants: FAILED_SHARDS, QUEUE_PREFIX, SHARD_PREFIX, SHORT_QUEUE, STONES

local id = ARGV[1]
local shard = SHARD_PREFIX .. id

local status, queue = unpack(redis.call('HMGET', shard, 'status', 'origin'))
redis.call('SREM', FAILED_SHARDS, id)
if not status then return 'absent' end
if status == 'started' or status == 'canceled' then
  redis.call('HSET', shard, 'status', 'canceled')
  return 'signalled'
end
redis.call('DEL', shard)
if status ~= 'queued' then return 'removed' end
if redis.call('LLEN', QUEUE_PREFIX .. queue) > SHORT_QUEUE then
  redis.call('HINCRBY', STONES, queue, 1)
else
  redis.call('LREM', QUEUE_PREFIX .. queue, 1, id)
  leave_if_empty(queue)
end
return 'removed'
