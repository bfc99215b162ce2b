-- Function `now()`: the server's time, in seconds since the epoch.
-- Times are compared by the server's clock, because the clocks of hosts differ.

local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
