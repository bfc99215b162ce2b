-- Finds the job of an Idempotency-Key, for a request that would not be accepted as a new one.
--
-- KEYS:
--   idempotency: string of the Idempotency-Key (keys.idempotency_key)
-- ARGV:
--   fingerprints*: hashes of the request
-- RESULT:
--   {'same' or 'reused', id of the job}, or false if there is none
-- include: idempotency

local verdict, job = posted_with(KEYS[1], ARGV)
return verdict and {verdict, job}
