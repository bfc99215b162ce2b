-- Claims a job whose objects in the results store are to be removed.
--
-- KEYS:
--   expiring: sorted set of jobs by when they are due (keys.EXPIRING)
-- ARGV:
--   claim_s: seconds for which nobody else gets the job
-- RESULT:
--   {job, until when it is claimed}, or false if none is due
-- include: deadlines

local job, claimed_until = claim_due(KEYS[1], ARGV[1])
return job and {job, claimed_until}
