-- Reads the states of jobs.
--
-- KEYS:
--   records*: hash of each job
-- RESULT:
--   the state of each, false if the job is gone

local states = {}
for i, record in ipairs(KEYS) do states[i] = redis.call('HGET', record, 'state') end
return states
