-- Functions on the time by which leases lapse.
-- It passes as the server's time does, but only while heartbeats and reapers are heard: each moves
-- it on by what has passed since the one before, and by a quarter of a lease at most. So an outage
-- lets no lease lapse, nor does a clock that is set, whether forwards or back.
-- The key is there while a lease is. If it is lost, the time is that of the last heartbeat that a
-- lease tells of.
-- include: now
-- constants: LEASES, LEASE_CLOCK

local function lease_time(lease_s)
  local at = now()
  local time, seen = unpack(redis.call('HMGET', LEASE_CLOCK, 'time', 'seen'))
  if time and seen then return time + math.max(0, math.min(at - seen, lease_s / 4)) end
  local latest = tonumber(redis.call('ZREVRANGE', LEASES, 0, 0, 'WITHSCORES')[2] or 0)
  return latest > tonumber(lease_s) and math.min(at, latest - lease_s) or at
end

local function forget_lease_time_if_unused()
  if redis.call('EXISTS', LEASES) == 0 then redis.call('DEL', LEASE_CLOCK) end
end

-- Moves the time on, and returns it.
local function pass_lease_time(lease_s)
  local time = lease_time(lease_s)
  if redis.call('EXISTS', LEASES) == 0 then return time end
  -- first, since a full server refuses a script whose first write needs memory
  redis.call('EXPIRE', LEASE_CLOCK, math.ceil(lease_s * 4))
  redis.call('HSET', LEASE_CLOCK,
    'time', string.format('%.6f', time), 'seen', string.format('%.6f', now()))
  redis.call('EXPIRE', LEASE_CLOCK, math.ceil(lease_s * 4))
  return time
end
