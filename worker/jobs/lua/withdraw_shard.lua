-- Removes a shard that waits, or tells the worker that runs it to drop it.
-- RQ's Job.cancel would leave the hash, and an entry in rq:canceled, for ever.
--
-- KEYS:
--   waiting: list of the queue's shards that wait
--   shard: hash of the shard, which is RQ's job
--   failed: sorted set of the queue's shards that failed
-- ARGV:
--   id: of the shard
-- RESULT:
--   'absent', 'removed' (it waited) or 'signalled' (its worker drops it)

local waiting, shard, failed = unpack(KEYS)
local id = ARGV[1]

local status = redis.call('HGET', shard, 'status')
redis.call('ZREM', failed, id)
if not status then return 'absent' end
if status == 'started' or status == 'canceled' then
  redis.call('HSET', shard, 'status', 'canceled')
  return 'signalled'
end
redis.call('LREM', waiting, 1, id)
redis.call('DEL', shard)
return 'removed'
