-- Removes the oldest open jobs whose record has expired, because no worker ever finished them.
-- The key `record` is the prefix of all jobs' records here.
--
-- RESULT:
--   nothing
-- include: transition

for _, job in ipairs(redis.call('ZRANGE', open, 0, 99)) do
  if redis.call('EXISTS', record .. job) == 0 then
    subtract(job)
    redis.call('ZREM', open, job)
  end
end
