-- Notes the outcome of an attempt at a webhook, unless the claim has lapsed.
--
-- KEYS:
--   webhooks: sorted set of jobs by when their webhook is due (keys.WEBHOOKS)
--   record: hash of the job
-- ARGV:
--   job: that was claimed
--   claimed_until: time from the claim
--   again_in_s: seconds until the next attempt; empty if there is none
--   outcome*(field, value): fields of the record that are set
-- RESULT:
--   nothing
-- include: deadlines

local webhooks, record = unpack(KEYS)
local job, claimed_until, again_in_s = unpack(ARGV, 1, 3)

if not is_claimed(webhooks, job, claimed_until) then return end
if redis.call('EXISTS', record) == 0 then
  settle(webhooks, job, '')
  return
end
redis.call('HSET', record, unpack(ARGV, 4))
settle(webhooks, job, again_in_s)
