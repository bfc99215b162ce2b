-- Lets the leases of shards lapse now. Whoever reaps the shards finds the reason.
--
-- KEYS:
--   shards*: hash of each shard
-- ARGV:
--   reason: why the worker gives them up
--   members*: the lease of each shard
-- RESULT:
--   nothing
-- constants: LEASES

local reason = ARGV[1]

for n, shard in ipairs(KEYS) do
  local member = ARGV[n + 1]
  local is_leased = redis.call('ZSCORE', LEASES, member)
  if is_leased and redis.call('HGET', shard, 'status') == 'started' then
    redis.call('ZADD', LEASES, 0, member)
    redis.call('HSET', shard, 'reason', reason)
  end
end
