-- Lets the owners of queues to which shards were posted wait for their turn.
--
-- ARGV:
--   queues*: names of the queues
-- RESULT:
--   nothing
-- include: waiting

for _, queue in ipairs(ARGV) do join_rotation(queue, false) end
