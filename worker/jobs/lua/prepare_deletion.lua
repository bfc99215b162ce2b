-- Takes a job out of everything but its own keys, which the caller deletes next.
--
-- RESULT:
--   1, or 0 if the results store holds nothing of the job
-- include: listing, transition, webhook_lanes
-- constants: REMOVED_AGAIN_S

subtract(id)
forget_all_chains(chains)
redis.call('ZREM', webhooks, id)
local owner, url = unpack(redis.call('HMGET', record, 'owner', 'webhook'))
local receiver = receiver_of(url)
if owner then unlist(owner, id) end
if owner and receiver then set_due(owner, receiver, id) end
local idempotency = redis.call('HGET', record, 'idempotency')
if idempotency then redis.call('DEL', idempotency) end
if not is_external() then return 0 end
remove_objects_at(now() + REMOVED_AGAIN_S)
return 1
