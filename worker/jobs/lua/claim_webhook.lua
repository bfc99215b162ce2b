-- Claims a webhook that is due, and counts the attempt at it.
-- It takes out the jobs that it meets whose record is gone.
--
-- KEYS:
--   webhooks: sorted set of jobs by when their webhook is due (keys.WEBHOOKS)
-- ARGV:
--   claim_s: seconds for which nobody else gets the webhook
--   record_prefix: of the keys of jobs' records
-- RESULT:
--   {job, until when it is claimed, its record, number of its finished images}, or false if none
--   is due
-- include: deadlines

local webhooks = KEYS[1]
local claim_s, record_prefix = unpack(ARGV)

while true do
  local job, claimed_until = claim_due(webhooks, claim_s)
  if not job then return false end
  local record = record_prefix .. job
  if redis.call('EXISTS', record) == 1 then
    redis.call('HINCRBY', record, 'webhook_attempts', 1)
    local images_done = redis.call('HLEN', record .. ':sha256')
    return {job, claimed_until, redis.call('HGETALL', record), images_done}
  end
  settle(webhooks, job, '')
end
