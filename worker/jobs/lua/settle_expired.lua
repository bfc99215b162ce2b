-- Takes out a job whose objects have been removed from the results store.
--
-- KEYS:
--   expiring: sorted set of jobs by when they are due (keys.EXPIRING)
-- ARGV:
--   job: that was claimed
--   claimed_until: time from the claim
-- RESULT:
--   nothing
-- include: deadlines

local expiring = KEYS[1]
local job, claimed_until = unpack(ARGV)

if is_claimed(expiring, job, claimed_until) then settle(expiring, job, '') end
