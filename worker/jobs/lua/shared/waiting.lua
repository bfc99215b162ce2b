-- Functions on shards that wait.
-- There is a list, RQ's queue, for each class, model and owner. Its name is
-- "<class>:<model>:<owner>" behind `QUEUE_NAMES`. The field `origin` of a shard says in which queue
-- it belongs.
-- For each class and model there is a rotation of owners: a sorted set, in which the owner with the
-- least score has the next turn. An owner is in it exactly while the owner's queue has entries.
-- The id of a withdrawn shard may stay in a long queue as a stone, which takes step over.
-- constants: QUEUES, QUEUE_NAMES, QUEUE_PREFIX, ROTATION_PREFIX, SHARD_PREFIX, STONES

-- Returns "<class>:<model>" behind `QUEUE_NAMES`, and the owner. It returns nothing for a queue of
-- before there was one an owner.
local function parts_of(queue)
  local name, owner = string.match(queue, '^(%a+:.+):([^:]*)$', #QUEUE_NAMES + 1)
  if name then return QUEUE_NAMES .. name, owner end
end

-- Gives an owner the next turn, or the last one.
local function set_turn(rotation, owner, is_next)
  local edge = is_next and 0 or -1
  local score = redis.call('ZRANGE', rotation, edge, edge, 'WITHSCORES')[2] or 0
  redis.call('ZADD', rotation, score + (is_next and -1 or 1), owner)
end

-- Lets the owner of a queue wait for a turn. One who waits already keeps the turn.
local function join_rotation(queue, is_next)
  local name, owner = parts_of(queue)
  local rotation = ROTATION_PREFIX .. name
  if not redis.call('ZSCORE', rotation, owner) then set_turn(rotation, owner, is_next) end
end

-- Takes the owner of a queue out of the rotation if nothing is left in the queue.
local function leave_if_empty(queue)
  if redis.call('EXISTS', QUEUE_PREFIX .. queue) == 1 then return end
  local name, owner = parts_of(queue)
  if name then redis.call('ZREM', ROTATION_PREFIX .. name, owner) end
  redis.call('HDEL', STONES, queue)
end

-- Puts a shard at the front or the end of its queue.
-- A shard of before there was a queue for each owner gets the queue of its owner.
local function put(id, is_first)
  local shard = SHARD_PREFIX .. id
  local queue, owner = unpack(redis.call('HMGET', shard, 'origin', 'owner'))
  if not parts_of(queue) then
    queue = queue .. ':' .. (owner or '')
    redis.call('HSET', shard, 'origin', queue)
  end
  redis.call('SADD', QUEUES, QUEUE_PREFIX .. queue)
  redis.call(is_first and 'LPUSH' or 'RPUSH', QUEUE_PREFIX .. queue, id)
  join_rotation(queue, is_first)
end
