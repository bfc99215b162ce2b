-- Takes the next shards that wait, and leases them to a worker.
-- The worker's models take turns, and so do the owners whose shards of a model wait. Of the
-- interactive and the bulk shards, a worker takes one bulk shard in `FLOOR` while both wait.
-- A take that is asked again gets what it got before and still holds: the answer was lost.
-- One that comes after a later take was delayed on its way, and gets nothing.
-- It ends with the shard that makes it as many images as a whole shard has: of large shards, other
-- workers get theirs.
-- A take that finds nothing may ask the workers that hold more than they run to hand some back.
-- Stones are stepped over, so many in one call that the server is not held up for long.
--
-- KEYS:
--   executions: set of the worker's executions
--   taken: string of the worker's last take that got something (keys.take_key)
-- ARGV:
--   number: of the take, each of which has the next one
--   execution: id under which the shards are leased
--   worker: its name
--   lease_s: seconds until the leases lapse
--   iso_now: time for RQ's fields
--   most: shards that are taken at most
--   most_losses: losses that a shard is allowed. After one that has had a loss, only such are
--     taken, and after one that has had more no other
--   most_suspects: shards with one loss that are taken at most
--   since_bulk: interactive shards that the worker took after its last bulk shard
--   asks: 1 to ask other workers for shards if none waits, else 0
--   wanted*(name, room, batch, work, shards, newcomers, owners): classes and models that are
--     wanted, the one whose turn it is first. Of each: the images that there is room for; the
--     images, the image-steps and the shards that are lacking; how many owners' shards are taken
--     when nothing is lacking; and the owners who are not among these, as ':ann:bob:'. A shard is
--     taken while a whole one fits
-- RESULT:
--   {queue, id, hash of the shard, ...}, which is empty if stones were met and it is to be asked
--   again; false if nothing waits
-- include: now, lease_clock, waiting
-- constants: EXECUTIONS_PREFIX, EXECUTION_PREFIX, FLOOR, IDLE, LEASES, LEASE_CLOCK, QUEUE_NAMES
-- constants: QUEUE_PREFIX, ROTATION_PREFIX, SHARD_IMAGES, SHARD_PREFIX, STARTED_PREFIX, STONES

local call = redis.call
local executions, taken = KEYS[1], KEYS[2]
local number, execution, worker, lease_s, iso_now = unpack(ARGV, 1, 5)
local most, most_losses, most_suspects = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local since_bulk, asks = tonumber(ARGV[9]), ARGV[10]
local at, ttl = now(), math.ceil(lease_s * 4)
local lapses = string.format('%.3f', lease_time(lease_s) + lease_s)
local stones_left = 1000

local turns = {}
for i = 11, #ARGV, 7 do
  local class, model = string.match(ARGV[i], '^(%a+):(.*)$', #QUEUE_NAMES + 1)
  local name, room, batch, work, shards, newcomers, owners = unpack(ARGV, i, i + 6)
  turns[#turns + 1] = {
    name = name, class = class, model = model, room = tonumber(room), batch = tonumber(batch),
    work = tonumber(work), shards = tonumber(shards), newcomers = tonumber(newcomers),
    owners = owners,
  }
end

-- Others hold leases too.
local function ask()
  if call('ZCARD', LEASES) <= call('SCARD', executions) then return end
  local message = {worker}
  for _, turn in ipairs(turns) do message[#message + 1] = turn.name end
  call('PUBLISH', IDLE, table.concat(message, '\n'))
end

local answer = {}
local function add(queue, id)
  answer[#answer + 1] = queue
  answer[#answer + 1] = id
  answer[#answer + 1] = call('HGETALL', SHARD_PREFIX .. id)
end

-- Pops the first shard of a queue that waits. Anything but 'queued' is a withdrawn or doubly
-- pushed id, which RQ would run.
local function pop(queue)
  while stones_left > 0 do
    local id = call('LPOP', QUEUE_PREFIX .. queue)
    if not id or call('HGET', SHARD_PREFIX .. id, 'status') == 'queued' then return id end
    stones_left = stones_left - 1
    if call('HINCRBY', STONES, queue, -1) <= 0 then call('HDEL', STONES, queue) end
  end
end

local function is_lacking(turn) return turn.batch > 0 or turn.work > 0 or turn.shards > 0 end

-- Returns the owner whose turn it is: of all, or of those of whom the worker holds nothing.
local function next_owner(turn, rotation)
  if is_lacking(turn) then return call('ZRANGE', rotation, 0, 0)[1] end
  if turn.newcomers <= 0 then return nil end
  for _, owner in ipairs(call('ZRANGE', rotation, 0, 31)) do
    if not string.find(turn.owners, ':' .. owner .. ':', 1, true) then return owner end
  end
end

-- Pops a shard of the owner whose turn it is.
local function pop_in_turn(turn)
  local rotation = ROTATION_PREFIX .. turn.name
  while stones_left > 0 do
    local owner = next_owner(turn, rotation)
    if not owner then return nil end
    local queue = turn.name .. ':' .. owner
    local id = pop(queue)
    if id then set_turn(rotation, owner, false) end
    leave_if_empty(queue)
    if id then return id, queue, owner end
  end
end

local function pop_of(class)
  for i, turn in ipairs(turns) do
    if turn.class == class and turn.room >= SHARD_IMAGES then
      local id, queue, owner = pop_in_turn(turn)
      if id then
        table.remove(turns, i)
        turns[#turns + 1] = turn
        turn.owners = turn.owners .. owner .. ':'
        if not is_lacking(turn) then turn.newcomers = turn.newcomers - 1 end
        return id, queue, turn, owner
      end
    end
  end
end

local function lease(id, queue)
  local member, shard = id .. ':' .. execution, SHARD_PREFIX .. id
  local key, index = EXECUTION_PREFIX .. member, EXECUTIONS_PREFIX .. id
  call('ZADD', LEASES, lapses, member)
  -- RQ's tools show it, and their clean-up, by the caller's clock, never takes it away
  call('ZADD', STARTED_PREFIX .. queue, '+inf', member)
  call('HSET', key, 'id', execution, 'job_id', id, 'worker_name', worker,
    'created_at', string.format('%.6f', at), 'last_heartbeat', string.format('%.6f', at))
  call('ZADD', index, '+inf', execution)
  -- outlive the lease: RQ's Job.cancel and delete raise if the index outlives the hash
  call('EXPIRE', key, ttl)
  call('EXPIRE', index, ttl)
  call('SADD', executions, member)
  call('EXPIRE', executions, ttl)
  call('HSET', shard, 'status', 'started', 'started_at', iso_now, 'last_heartbeat', iso_now,
    'worker_name', worker)
  call('HDEL', shard, 'reason')
end

local last, its_ids = string.match(call('GET', taken) or '', '^(%d+)(.*)$')
if last and tonumber(last) >= tonumber(number) then
  for id in string.gmatch(last == number and its_ids or '', '[^\n]+') do
    if call('ZSCORE', LEASES, id .. ':' .. execution) then
      add(call('HGET', SHARD_PREFIX .. id, 'origin'), id)
    end
  end
  return #answer > 0 and answer
end

local ids, images, among_suspects = {}, 0, false
while #ids < most and images < SHARD_IMAGES do
  local is_bulk_first = since_bulk >= FLOOR - 1
  local id, queue, turn, owner = pop_of(is_bulk_first and 'bulk' or 'interactive')
  if not id then id, queue, turn, owner = pop_of(is_bulk_first and 'interactive' or 'bulk') end
  if not id then break end
  local its_images, steps, left =
    unpack(call('HMGET', SHARD_PREFIX .. id, 'images', 'steps', 'retries_left'))
  local losses = most_losses - tonumber(left or 0)
  if among_suspects and losses ~= 1 then
    put(id, true)
    set_turn(ROTATION_PREFIX .. turn.name, owner, true)
    break
  end
  among_suspects = losses > 0
  lease(id, queue)
  add(queue, id)
  ids[#ids + 1] = id
  since_bulk = turn.class == 'bulk' and 0 or since_bulk + 1
  if losses > 1 or (among_suspects and #ids >= most_suspects) then break end
  its_images = tonumber(its_images or SHARD_IMAGES)
  images = images + its_images
  turn.batch, turn.shards = turn.batch - its_images, turn.shards - 1
  turn.work = turn.work - its_images * tonumber(steps or 0)
  for _, other in ipairs(turns) do
    if other.model == turn.model then other.room = other.room - its_images end
  end
end
if #ids > 0 then
  if call('EXISTS', LEASE_CLOCK) == 0 then pass_lease_time(lease_s) end
  call('SET', taken, number .. '\n' .. table.concat(ids, '\n'), 'EX', ttl)
end
if #ids > 0 or stones_left == 0 then return answer end
if asks == '1' then ask() end
return false
