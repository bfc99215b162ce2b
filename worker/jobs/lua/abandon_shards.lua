-- Lets the leases of shards lapse now. Whoever reaps the shards finds the reason.
--
-- KEYS:
--   shards*(started, shard): sorted set of the queue's executions that run, and the shard's hash
-- ARGV:
--   reason: why the worker gives them up
--   members*: the execution of each shard
-- RESULT:
--   nothing

local reason = ARGV[1]

for n = 1, #ARGV - 1 do
  local started, shard, member = KEYS[2 * n - 1], KEYS[2 * n], ARGV[n + 1]
  local is_leased = redis.call('ZSCORE', started, member)
  if is_leased and redis.call('HGET', shard, 'status') == 'started' then
    redis.call('ZADD', started, 0, member)
    redis.call('HSET', shard, 'reason', reason)
  end
end
