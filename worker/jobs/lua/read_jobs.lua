-- Reads all that the status of jobs says.
-- It is one command, since redis-py takes longer over a command than Redis does.
--
-- KEYS:
--   interactive: sorted set of the open interactive jobs
--   bulk: sorted set of the open bulk jobs
--   jobs*(record, hashes, pngs): hash of each job, of its images' sha256 and of its PNGs
-- ARGV:
--   ids*: of the jobs
-- RESULT:
--   of each job {record, hashes, 1 if there are PNGs, jobs before it or false unless it is queued}
-- include: position

local interactive, bulk = KEYS[1], KEYS[2]

local found = {}
for i, id in ipairs(ARGV) do
  local record, hashes, pngs = unpack(KEYS, 3 * i, 3 * i + 2)
  local state, priority = unpack(redis.call('HMGET', record, 'state', 'priority'))
  found[i] = {
    redis.call('HGETALL', record),
    redis.call('HGETALL', hashes),
    redis.call('EXISTS', pngs),
    state == 'queued' and position(id, priority, interactive, bulk),
  }
end
return found
