-- Reads all that the status of jobs says.
-- It is one command, since redis-py takes longer over a command than Redis does.
--
-- KEYS:
--   interactive: sorted set of the open interactive jobs
--   bulk: sorted set of the open bulk jobs
--   left: hash from open job to the image-steps that are left of it (keys.LEFT)
--   workers: hash of the workers (keys.WORKERS)
--   jobs*(record, hashes, pngs): hash of each job, of its images' sha256 and of its PNGs
-- ARGV:
--   most: jobs of each priority that an estimate reads
--   ids*: of the jobs
-- RESULT:
--   {the JSON of each living worker, of each job {record, hashes, 1 if there are PNGs, place}}
-- include: queue_place, alive

local interactive, bulk, left, workers = unpack(KEYS, 1, 4)
local queue = {interactive = interactive, bulk = bulk, left = left, most = tonumber(ARGV[1])}

local found = {}
for i = 1, #ARGV - 1 do
  local record, hashes, pngs = unpack(KEYS, 3 * i + 2, 3 * i + 4)
  found[i] = {
    redis.call('HGETALL', record),
    redis.call('HGETALL', hashes),
    redis.call('EXISTS', pngs),
    queue_place(ARGV[i + 1], record, queue),
  }
end
return {alive(workers), found}
