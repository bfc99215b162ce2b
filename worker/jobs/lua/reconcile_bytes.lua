-- Forgets the bytes of images that are gone, and of jobs without a record.
-- A deletion that a full server let through in part, or a lost key, can have left the latter.
--
-- ARGV:
--   most: jobs to look at, of either kind
-- RESULT:
--   nothing
-- include: kept, now
-- constants: KEPT, RECORD_PREFIX

local most = tonumber(ARGV[1])

forget_expired_bytes(now(), most)
local some = redis.call('HRANDFIELD', KEPT, most)
for _, job in ipairs(some) do
  if redis.call('EXISTS', RECORD_PREFIX .. job) == 0 then forget_bytes(job) end
end
