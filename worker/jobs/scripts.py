"""The Lua behind queue.py and rq_worker.py: each script is one change of a shard's state. Key names come from RQ's objects."""

from worker.jobs.domain import SHARD_IMAGES
from worker.jobs.keys import CHANGES

_NOW = "local t = redis.call('TIME'); local now = t[1] + t[2] / 1e6; local C = redis.call\n"

# KEYS: worker executions, then (queue, wip) by priority: those that are wanted, then all others of the worker.
# ARGV: execution id, worker, lease, iso now, prefixes of job / execution / executions keys, how many queues are wanted, how many
# shards are looked at; for each wanted queue what an owner may hold already, and the images of a shard for which that does not
# count; then owners, each before the interactive images of it that the worker holds.
# An id that was used already gets what it got then: its answer was lost, and nobody would hold that shard.
# Of interactive shards the first whose owner has least in the worker goes first, so that nobody waits behind another's many jobs.
TAKE = (
    _NOW
    + """
local held = {}
for i = 10 + 2 * ARGV[8], #ARGV, 2 do held[ARGV[i]] = tonumber(ARGV[i + 1]) end
local function next_of(queue, most, small)
  if not (next(held) and string.find(queue, ':interactive:', 1, true)) then return C('LPOP', queue) end
  local chosen, least
  for _, id in ipairs(C('LRANGE', queue, 0, ARGV[9] - 1)) do
    local said = C('HMGET', ARGV[5] .. id, 'owner', 'images')
    local owned, images = said[1] and held[said[1]] or 0, tonumber(said[2] or 0)
    if (owned <= most or images <= small) and (not least or owned < least) then chosen, least = id, owned end
    if least == 0 then break end
  end
  if chosen then C('LREM', queue, 1, chosen) end
  return chosen or false
end
for _, member in ipairs(C('SMEMBERS', KEYS[1])) do
  local id = string.match(member, '^(.*):' .. ARGV[1] .. '$')
  for i = 2, id and #KEYS or 0, 2 do
    if C('ZSCORE', KEYS[i + 1], member) then return {(i - 2) / 2, id, C('HGETALL', ARGV[5] .. id)} end
  end
end
for i = 2, 2 * ARGV[8], 2 do
  local most, small = tonumber(ARGV[8 + i]), tonumber(ARGV[9 + i])
  local id = next_of(KEYS[i], most, small)
  while id do
    local job, member = ARGV[5] .. id, id .. ':' .. ARGV[1]
    -- anything but 'queued' is a deleted, cancelled or doubly pushed id: drop it (RQ would run it)
    if C('HGET', job, 'status') == 'queued' then
      local execution, index, ttl = ARGV[6] .. member, ARGV[7] .. id, math.ceil(ARGV[3] * 4)
      C('ZADD', KEYS[i + 1], string.format('%.3f', now + ARGV[3]), member)
      C('HSET', execution, 'id', ARGV[1], 'job_id', id, 'worker_name', ARGV[2],
        'created_at', string.format('%.6f', now), 'last_heartbeat', string.format('%.6f', now))
      C('ZADD', index, string.format('%.3f', now + ttl), ARGV[1])
      -- outlive the lease: RQ's Job.cancel/delete raise if the index outlives the hash
      C('EXPIRE', execution, ttl); C('EXPIRE', index, ttl)
      C('SADD', KEYS[1], member); C('EXPIRE', KEYS[1], ttl)
      C('HSET', job, 'status', 'started', 'started_at', ARGV[4], 'last_heartbeat', ARGV[4], 'worker_name', ARGV[2])
      C('HDEL', job, 'reason')
      return {(i - 2) / 2, id, C('HGETALL', job)}
    end
    id = next_of(KEYS[i], most, small)
  end
end
return false"""
)

# A job is `running` while a worker holds a shard of it, so whatever takes a shard from its worker ends with this.
# `shards` and `records` are the prefixes of RQ's jobs and of our jobs' records.
_REST = """
local function rest(id, shards, records)
  local job = string.match(id, '^(.*)%-%d+$')
  local record = redis.call('HMGET', records .. (job or ''), 'state', 'count')
  if record[1] ~= 'running' then return end
  for k = 0, math.ceil(record[2] / $SHARD_IMAGES) - 1 do
    if redis.call('HGET', shards .. job .. '-' .. k, 'status') == 'started' then return end
  end
  redis.call('HSET', records .. job, 'state', 'queued')
  redis.call('PUBLISH', '$CHANGES', job .. ' queued')
end
""".replace("$SHARD_IMAGES", str(SHARD_IMAGES)).replace("$CHANGES", CHANGES)

# KEYS: wip, queue, job, executions index, execution, worker executions.  ARGV: member, id, mode, prefixes of jobs and records.
# -> 0 where the execution is no longer in wip: a late worker, whose shard is somebody else's by now.
FENCED = (
    _REST
    + """
local C = redis.call
if not C('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
C('ZREM', KEYS[1], ARGV[1]); C('DEL', KEYS[4], KEYS[5]); C('SREM', KEYS[6], ARGV[1])
if ARGV[3] == 'front' and C('HGET', KEYS[3], 'status') == 'started' then
  C('HSET', KEYS[3], 'status', 'queued', 'started_at', '', 'worker_name', '')
  C('LPUSH', KEYS[2], ARGV[2])
else
  C('DEL', KEYS[3])
end
rest(ARGV[2], ARGV[4], ARGV[5])
return 1"""
)

# KEYS: (wip, job) a shard.  ARGV: reason, members.  Their leases lapse now, and whoever reaps them finds the reason.
ABANDON = """
local C = redis.call
for i = 2, #ARGV do
  local wip, job = KEYS[2 * i - 3], KEYS[2 * i - 2]
  if C('ZSCORE', wip, ARGV[i]) and C('HGET', job, 'status') == 'started' then
    C('ZADD', wip, 0, ARGV[i]); C('HSET', job, 'reason', ARGV[1])
  end
end"""

# KEYS: worker, worker executions, then (wip, job, execution, executions index) a shard.
# ARGV: worker ttl, lease, iso now, state, members.  EXISTS first: a bare HSET would resurrect keys for ever.
BEAT = (
    _NOW
    + """
local out, ttl = {C('EXISTS', KEYS[1])}, math.ceil(ARGV[2] * 4)
-- first, since a full server refuses a script whose first write needs memory; and then all leases would lapse
C('EXPIRE', KEYS[2], ttl)
if out[1] == 1 then
  C('HSET', KEYS[1], 'last_heartbeat', ARGV[3], 'state', ARGV[4]); C('EXPIRE', KEYS[1], ARGV[1])
end
for i = 1, #ARGV - 4 do
  local k, member = 4 * i - 1, ARGV[4 + i]
  if not C('ZSCORE', KEYS[k], member) then
    out[i + 1] = 'lost'
  else
    C('ZADD', KEYS[k], 'XX', string.format('%.3f', now + ARGV[2]), member)
    if C('EXISTS', KEYS[k + 2]) == 1 then C('HSET', KEYS[k + 2], 'last_heartbeat', string.format('%.6f', now)) end
    C('EXPIRE', KEYS[k + 2], ttl); C('EXPIRE', KEYS[k + 3], ttl)
    C('ZADD', KEYS[k + 3], 'XX', string.format('%.3f', now + ttl), string.sub(member, -32))
    out[i + 1] = C('HGET', KEYS[k + 1], 'status') == 'started' and 'mine' or 'cancelled'
  end
end
return out"""
)

# KEYS: wip, queue, intermediate, failed.
# ARGV: lease, failed ttl, prefixes of job / execution / executions / first-seen keys, worker executions template,
# most losses, prefix of the records of our jobs.
# A loss counts only where the lost worker got no further than any before it. `reached` and `kept` in the shard's hash are the
# image-steps that were done, and that were saved, at the losses before. One that left more saved than it found is neither
# counted nor forgiven: it may not have come to the point where those before it were lost.
REAP = (
    _REST
    + _NOW
    + """
local out, back = {}, {}
local function retries_left(job, id)
  local of, number = string.match(id, '^(.*)%-(%d+)$')
  local now_at, before = C('HMGET', ARGV[9] .. of, 'p' .. number, 'k' .. number), C('HMGET', job, 'reached', 'kept')
  local reported, kept = tonumber(string.match(now_at[1] or '', ',(%d+)')) or 0, tonumber(now_at[2]) or 0
  local reached = math.max(reported, kept)
  local further, safer = reached > (tonumber(before[1]) or 0), kept > (tonumber(before[2]) or 0)
  if further then C('HSET', job, 'reached', reached, 'retries_left', ARGV[8]) end
  if safer then C('HSET', job, 'kept', kept) end
  return C('HINCRBY', job, 'retries_left', (further or safer) and 0 or -1)
end
for _, member in ipairs(C('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  local id, execution_id = string.match(member, '^(.*):(.*)$')
  local job, status = ARGV[3] .. id, C('HGET', ARGV[3] .. id, 'status')
  local worker = C('HGET', ARGV[4] .. member, 'worker_name')
  if worker then C('SREM', (string.gsub(ARGV[7], '{0}', function() return worker end)), member) end
  C('ZREM', KEYS[1], member); C('DEL', ARGV[4] .. member, ARGV[5] .. id)
  if status == 'started' then
    C('HINCRBY', job, 'number_of_retries', 1)
    if retries_left(job, id) > 0 then
      back[#back + 1] = id
    else
      C('HSET', job, 'status', 'failed'); C('EXPIRE', job, ARGV[2])
      C('ZADD', KEYS[4], math.floor(now + ARGV[2]), id)
      out[#out + 1] = id; out[#out + 1] = 'failed'
    end
  elseif status == 'canceled' then
    C('DEL', job)
  end
end
-- Nothing of ours uses the intermediate list; a stock rq worker dying between LMOVE and start leaves ids there.
for _, id in ipairs(C('LRANGE', KEYS[3], 0, -1)) do
  local seen = C('GET', ARGV[6] .. id)
  if C('HGET', ARGV[3] .. id, 'status') ~= 'queued' then
    C('LREM', KEYS[3], 1, id)
  elseif not seen then
    C('SET', ARGV[6] .. id, string.format('%.3f', now), 'EX', 3600)
  elseif now - seen >= tonumber(ARGV[1]) then
    C('LREM', KEYS[3], 1, id); C('DEL', ARGV[6] .. id); back[#back + 1] = id
  end
end
-- oldest ends up at the very front: push the youngest first (ISO times sort as text)
local age = {}
for _, id in ipairs(back) do age[id] = (C('HGET', ARGV[3] .. id, 'enqueued_at') or '') .. id end
table.sort(back, function(a, b) return age[a] > age[b] end)
for _, id in ipairs(back) do
  C('HSET', ARGV[3] .. id, 'status', 'queued', 'started_at', '', 'worker_name', '')
  C('LPUSH', KEYS[2], id)
  out[#out + 1] = id; out[#out + 1] = 'requeued'
end
for i = 1, #out, 2 do rest(out[i], ARGV[3], ARGV[9]) end
return out"""
)

# KEYS: queue, job, failed.  ARGV: id.   -> 'absent', 'removed' (it waited) or 'signalled' (its worker drops it).
# RQ's Job.cancel would leave the hash and an entry in rq:canceled for ever.
WITHDRAW = """
local status = redis.call('HGET', KEYS[2], 'status')
redis.call('ZREM', KEYS[3], ARGV[1])
if not status then return 'absent' end
if status == 'started' or status == 'canceled' then
  redis.call('HSET', KEYS[2], 'status', 'canceled'); return 'signalled'
end
redis.call('LREM', KEYS[1], 1, ARGV[1]); redis.call('DEL', KEYS[2])
return 'removed'"""
