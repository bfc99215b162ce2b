-- Takes a job out of everything but its own keys, which the caller deletes next.
--
-- RESULT:
--   1, or 0 if the results store holds nothing of the job
-- include: transition
-- constants: REMOVED_AGAIN_S

subtract(id)
redis.call('ZREM', webhooks, id)
local idempotency = redis.call('HGET', record, 'idempotency')
if idempotency then redis.call('DEL', idempotency) end
if not is_external() then return 0 end
remove_objects_at(now() + REMOVED_AGAIN_S)
return 1
