-- Reads all open work for estimates, bounded however long the queue is.
--
-- KEYS:
--   interactive: sorted set of the open interactive jobs
--   bulk: sorted set of the open bulk jobs
--   left: hash from open job to what is left of it (keys.LEFT)
--   load: hash from owner to what is left of all its open jobs (keys.LOAD)
--   workers: hash of the workers (keys.WORKERS)
-- ARGV:
--   most: jobs of each class that are read at most, those that were posted first
-- RESULT:
--   {the JSON of each living worker, {owner, sum, ...}, of each class {number of jobs,
--     {id, when it was posted, its entry in `left`, ...}}}
-- include: alive

local call = redis.call
local interactive, bulk, left, load, workers = unpack(KEYS)
local most = tonumber(ARGV[1])

local function read(open)
  local found, jobs, ids = call('ZRANGE', open, 0, most - 1, 'WITHSCORES'), {}, {}
  for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
  local entries = #ids > 0 and call('HMGET', left, unpack(ids)) or {}
  for i, entry in ipairs(entries) do
    if entry then
      jobs[#jobs + 1] = ids[i]
      jobs[#jobs + 1] = found[2 * i]
      jobs[#jobs + 1] = entry
    end
  end
  return {call('ZCARD', open), jobs}
end

return {alive(workers), call('HGETALL', load), read(interactive), read(bulk)}
