-- Stores finished images. The image that completes the job ends it as finished.
--
-- ARGV:
--   images*(index, sha256, png): the PNG's bytes; empty if it lies in the results store
-- RESULT:
--   1, or 0 if the job has ended or is gone
-- include: transition
-- constants: UNFINISHED_TTL_S

if not is_open() then
  -- A late worker may have put objects back after all were removed: then they are due again.
  local ended, ttl = unpack(redis.call('HMGET', record, 'finished_at', 'results_ttl_s'))
  if ARGV[3] == '' then remove_objects_at(ended and ended + ttl or now()) end
  return 0
end
for i = 1, #ARGV, 3 do
  local index, sha256, png = unpack(ARGV, i, i + 2)
  -- the first one stays: a late worker on another kind of machine must not change what clients
  -- have cached
  if redis.call('HSETNX', hashes, index, sha256) == 1 and png ~= '' then
    redis.call('HSET', pngs, index, png)
  end
end
redis.call('EXPIRE', hashes, UNFINISHED_TTL_S)
redis.call('EXPIRE', pngs, UNFINISHED_TTL_S)
if redis.call('HLEN', hashes) == tonumber(redis.call('HGET', record, 'count')) then
  finish('finished')
end
return 1
