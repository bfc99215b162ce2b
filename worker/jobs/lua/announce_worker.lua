-- Publishes what a worker says of itself, and removes the workers whose entry has lapsed.
--
-- KEYS:
--   workers: hash of the workers (keys.WORKERS)
-- ARGV:
--   name: of the worker
--   info: JSON of its WorkerInfo
--   lives_s: seconds until the entry lapses
-- RESULT:
--   the JSON of each living worker, this one among them
-- include: alive

local workers = KEYS[1]
local name, info, lives_s = unpack(ARGV)

-- A full server refuses a script whose first write needs memory.
-- It lets such a write through after another one, so that the worker stays known.
redis.call('EXPIRE', workers, 4 * lives_s)
redis.call('HSET', workers, name, string.format('%.3f %s', now() + lives_s, info))
redis.call('EXPIRE', workers, 4 * lives_s)
local entries, at = redis.call('HGETALL', workers), now()
for i = 1, #entries, 2 do
  local lapses = tonumber(string.match(entries[i + 1], '^%S+'))
  if not lapses or lapses <= at then redis.call('HDEL', workers, entries[i]) end
end
return alive(workers)
