-- Publishes what a worker says of itself, and removes the workers whose entry has lapsed.
--
-- KEYS:
--   workers: hash of the workers (keys.WORKERS)
--   counters: hash of what they count (keys.WORKER_COUNTERS)
-- ARGV:
--   name: of the worker
--   info: JSON of its WorkerInfo
--   counted: JSON of its WorkerCounters
--   lives_s: seconds until the entry lapses
-- RESULT:
--   the JSON of each living worker, this one among them
-- include: alive

local workers, counters = unpack(KEYS)
local name, info, counted, lives_s = unpack(ARGV)

-- A full server refuses a script whose first write needs memory.
-- It lets such a write through after another one, so that the worker stays known.
redis.call('EXPIRE', workers, 4 * lives_s)
redis.call('HSET', workers, name, string.format('%.3f %s', now() + lives_s, info))
redis.call('EXPIRE', workers, 4 * lives_s)
redis.call('HSET', counters, name, counted)
redis.call('EXPIRE', counters, 4 * lives_s)
local entries, at = redis.call('HGETALL', workers), now()
for i = 1, #entries, 2 do
  local lapses = tonumber(string.match(entries[i + 1], '^%S+'))
  if not lapses or lapses <= at then
    redis.call('HDEL', workers, entries[i])
    redis.call('HDEL', counters, entries[i])
  end
end
return alive(workers)
