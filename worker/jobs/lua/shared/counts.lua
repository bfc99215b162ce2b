-- Function `tally(name)`: adds one to what Prometheus is told (app/operation/metrics.py).
-- It is kept in Redis, so that it is the same whichever API process is asked, and outlives all.
-- Call it last: a full server refuses a script whose first write needs memory.
-- constants: COUNTS

local function tally(name) redis.call('HINCRBY', COUNTS, name, 1) end
