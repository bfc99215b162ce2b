-- Claims a webhook that is due, and counts the attempt at it.
-- Jobs that have ended since the last call are put into their lanes first, some in each call.
-- It takes out the jobs that it meets whose record is gone.
--
-- KEYS:
--   webhooks: sorted set of jobs that have ended (keys.WEBHOOKS)
-- ARGV:
--   claim_s: seconds for which nobody else gets the webhook
--   busy*: owners, and receivers of an owner as "<owner> <receiver>", whose turn it is not
-- RESULT:
--   {job, receiver, until when it is claimed, its record, number of its finished images}, or false
--   if none is due
-- include: webhook_lanes
-- constants: RECORD_PREFIX, WEBHOOK_OWNERS, WEBHOOK_RECEIVERS_PREFIX

local call = redis.call
local webhooks, claim_s = KEYS[1], ARGV[1]
local at_once = 256
local at = now()

local ended = call('ZRANGE', webhooks, 0, at_once - 1, 'WITHSCORES')
for i = 1, #ended, 2 do
  local owner, url = unpack(call('HMGET', RECORD_PREFIX .. ended[i], 'owner', 'webhook'))
  local receiver = receiver_of(url)
  if owner and receiver then set_due(owner, receiver, ended[i], ended[i + 1]) end
  call('ZREM', webhooks, ended[i])
end

local is_busy = {}
for i = 2, #ARGV do is_busy[ARGV[i]] = true end

local function due_of(key)
  return call('ZRANGE', key, '-inf', at, 'BYSCORE', 'LIMIT', 0, #ARGV)
end

for _, owner in ipairs(due_of(WEBHOOK_OWNERS)) do
  for _, receiver in ipairs(is_busy[owner] and {} or due_of(WEBHOOK_RECEIVERS_PREFIX .. owner)) do
    local lane = lane_key(owner, receiver)
    local due = is_busy[owner .. ' ' .. receiver] and {}
      or call('ZRANGE', lane, '-inf', at, 'BYSCORE', 'LIMIT', 0, at_once)
    for _, job in ipairs(due) do
      local record = RECORD_PREFIX .. job
      if call('EXISTS', record) == 1 then
        local claimed_until = string.format('%d', math.ceil(at + claim_s))
        set_due(owner, receiver, job, claimed_until)
        call('HINCRBY', record, 'webhook_attempts', 1)
        local images_done = call('HLEN', record .. ':sha256')
        return {job, receiver, claimed_until, call('HGETALL', record), images_done}
      end
      set_due(owner, receiver, job)
    end
  end
end
return false
