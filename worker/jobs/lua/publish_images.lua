-- Stores finished images. The image that completes the job ends it as finished.
--
-- ARGV:
--   field: the shard's field of the record (keys.progress_field); empty if its progress stays
--   progress: of the shard with these images, as in report_progress.lua
--   images*(index, sha256, png, size): the PNG's bytes; empty if it lies in the results store;
--     and their number in either case
-- RESULT:
--   1, or 0 if the job has ended or is gone
-- include: progress
-- constants: UNFINISHED_TTL_S

local field, progress = unpack(ARGV, 1, 2)

if not is_open() then
  -- A late worker may have put objects back after all were removed: then they are due again.
  local ended, ttl = unpack(redis.call('HMGET', record, 'finished_at', 'results_ttl_s'))
  if ARGV[5] == '' then remove_objects_at(ended and ended + ttl or now()) end
  return 0
end
if field ~= '' then write_progress(field, progress) end
local new_bytes = 0
for i = 3, #ARGV, 4 do
  local index, sha256, png, size = unpack(ARGV, i, i + 3)
  -- the first one stays: a late worker on another kind of machine must not change what clients
  -- have cached
  if redis.call('HSETNX', hashes, index, sha256) == 1 then
    new_bytes = new_bytes + size
    if png ~= '' then redis.call('HSET', pngs, index, png) end
  end
end
if new_bytes > 0 then redis.call('HINCRBY', record, 'bytes', new_bytes) end
redis.call('EXPIRE', hashes, UNFINISHED_TTL_S)
redis.call('EXPIRE', pngs, UNFINISHED_TTL_S)
if redis.call('HLEN', hashes) == tonumber(redis.call('HGET', record, 'count')) then
  finish('finished')
end
return 1
