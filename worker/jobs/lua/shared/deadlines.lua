-- Functions that work off a sorted set of ids by the times when they are due.
-- A process claims an id by setting it to a later time, does the work, and settles the claim.
-- A process that is killed in between lets the claim lapse, and another one does the work again.
-- An id that was set to another time meanwhile is no longer claimed: it stays as it is.
-- include: now

-- Returns an id that is due and the time until which nobody else gets it; nil if none is due.
local function claim_due(deadlines, claim_s)
  local id = redis.call('ZRANGE', deadlines, '-inf', now(), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not id then return nil end
  local claimed_until = string.format('%d', math.ceil(now() + claim_s))
  redis.call('ZADD', deadlines, claimed_until, id)
  return id, claimed_until
end

local function is_claimed(deadlines, id, claimed_until)
  return redis.call('ZSCORE', deadlines, id) == claimed_until
end

-- Removes the id, or makes it due again in `again_in_s` seconds if that is not ''.
local function settle(deadlines, id, again_in_s)
  if again_in_s == '' then
    redis.call('ZREM', deadlines, id)
  else
    redis.call('ZADD', deadlines, string.format('%.3f', now() + again_in_s), id)
  end
end
