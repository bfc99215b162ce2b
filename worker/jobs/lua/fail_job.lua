-- Ends a job as failed.
--
-- ARGV:
--   code: of the error
--   message: of the error
-- RESULT:
--   1, or 0 if the job has ended or is gone
-- include: transition

local code, message = unpack(ARGV)

if not is_open() then return 0 end
redis.call('HSET', record, 'error_code', code, 'error_message', message)
finish('failed')
return 1
