-- Reads the jobs whose events clients follow.
-- It is one command, since redis-py takes longer over a command than Redis does.
-- The hashes of up to 1024 images are read only if there are new ones.
--
-- KEYS:
--   jobs*(record, hashes): hash of each job, and hash from its image indices to sha256
-- ARGV:
--   known*: number of hashes that the caller knows, of each job
-- RESULT:
--   {record, hashes or false if there are no new ones} of each job

local found = {}
for i, known in ipairs(ARGV) do
  local record, hashes = KEYS[2 * i - 1], KEYS[2 * i]
  local has_news = redis.call('HLEN', hashes) ~= tonumber(known)
  found[i] = {redis.call('HGETALL', record), has_news and redis.call('HGETALL', hashes)}
end
return found
