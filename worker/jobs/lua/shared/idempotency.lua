-- Function `posted_with(idempotency, fingerprints)`: what an Idempotency-Key was sent with before.
-- Returns 'same' or 'reused', and the job; nothing if no job that is there has the key.
-- A request has a fingerprint for each way in which versions of the service have made one.
-- constants: RECORD_PREFIX

local function posted_with(idempotency, fingerprints)
  local job, known = string.match(redis.call('GET', idempotency) or '', '^(%S+) (%S+)$')
  if not job or redis.call('EXISTS', RECORD_PREFIX .. job) == 0 then return end
  -- changes nothing, but as a write it makes WAITAOF wait for the first post as well
  redis.call('EXPIRE', idempotency, redis.call('TTL', RECORD_PREFIX .. job))
  for _, fingerprint in ipairs(fingerprints) do
    if fingerprint == known then return 'same', job end
  end
  return 'reused', job
end
