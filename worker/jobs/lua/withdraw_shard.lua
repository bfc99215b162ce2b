-- Removes a shard that waits, or tells the worker that runs it to drop it.
-- RQ's Job.cancel would leave the hash, and an entry in rq:canceled, for ever.
--
-- ARGV:
--   id: of the shard
-- RESULT:
--   'absent', 'removed' (it waited) or 'signalled' (its worker drops it)
-- constants: FAILED_SHARDS, QUEUE_PREFIX, SHARD_PREFIX

local id = ARGV[1]
local shard = SHARD_PREFIX .. id

local status, queue = unpack(redis.call('HMGET', shard, 'status', 'origin'))
redis.call('SREM', FAILED_SHARDS, id)
if not status then return 'absent' end
if status == 'started' or status == 'canceled' then
  redis.call('HSET', shard, 'status', 'canceled')
  return 'signalled'
end
redis.call('LREM', QUEUE_PREFIX .. queue, 1, id)
redis.call('DEL', shard)
return 'removed'
