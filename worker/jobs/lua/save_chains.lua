-- Saves the unfinished chains of a shard, for the worker that takes it after a loss.
--
-- ARGV:
--   shard: its number in the job
--   snapshot: bytes of the chains; empty if they lie in the results store
--   image_steps: image-steps of the shard that are done in the snapshot
-- RESULT:
--   1, or 0 if the job has ended or is gone
-- include: transition
-- constants: UNFINISHED_TTL_S

local shard, snapshot, image_steps = unpack(ARGV)

if not is_open() then return 0 end
redis.call('HSET', chains, shard, snapshot)
redis.call('HSET', record, 'k' .. shard, image_steps)
redis.call('EXPIRE', chains, UNFINISHED_TTL_S)
return 1
