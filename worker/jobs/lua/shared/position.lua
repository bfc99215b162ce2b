-- Function `position(id, priority, interactive, bulk)`: the open jobs before one that is queued.
-- `interactive` and `bulk` are the sorted sets of open jobs. The interactive ones come first.

local function position(id, priority, interactive, bulk)
  if priority == 'interactive' then return redis.call('ZRANK', interactive, id) or 0 end
  return (redis.call('ZRANK', bulk, id) or 0) + redis.call('ZCARD', interactive)
end
