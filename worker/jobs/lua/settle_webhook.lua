-- Notes the outcome of an attempt at a webhook, unless the claim has lapsed.
--
-- KEYS:
--   record: hash of the job
-- ARGV:
--   job: that was claimed
--   owner: of the job
--   receiver: from the claim
--   claimed_until: time from the claim
--   again_in_s: seconds until the next attempt; empty if there is none
--   outcome*(field, value): fields of the record that are set
-- RESULT:
--   nothing
-- include: counts, webhook_lanes

local record = KEYS[1]
local job, owner, receiver, claimed_until, again_in_s = unpack(ARGV, 1, 5)

if redis.call('ZSCORE', lane_key(owner, receiver), job) ~= claimed_until then return end
local is_there = redis.call('EXISTS', record) == 1
if is_there then redis.call('HSET', record, unpack(ARGV, 6)) end
local is_over = again_in_s == '' or not is_there
set_due(owner, receiver, job, not is_over and string.format('%.3f', now() + again_in_s) or nil)
if is_there then
  tally('webhook ' .. (is_over and redis.call('HGET', record, 'webhook_state') or 'retried'))
end
