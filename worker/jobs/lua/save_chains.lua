-- Records where the unfinished chains of shards lie, for the workers that take them after a loss.
-- This makes a bundle visible, all of whose pieces are there by now.
-- A shard whose job has ended or is gone is left out.
--
-- ARGV:
--   reference: what the fields of the shards are to hold: keys.BUNDLE_REFERENCE and the id of a
--     bundle, or nothing for chains in the results store
--   shards*(job, number, image_steps): each shard, and the image-steps of it that are saved
-- RESULT:
--   {1, or 0 if the job has ended or is gone, of each shard}
-- include: bundles
-- constants: BUNDLE_PREFIX, BUNDLE_REFERENCE, RECORD_PREFIX, UNFINISHED_TTL_S

local call = redis.call
local reference = ARGV[1]
local bundle = nil
if reference ~= '' then bundle = BUNDLE_PREFIX .. string.sub(reference, #BUNDLE_REFERENCE + 1) end

local answer = {}
for i = 2, #ARGV, 3 do
  local job, number, image_steps = unpack(ARGV, i, i + 2)
  local record = RECORD_PREFIX .. job
  local chains = record .. ':chains'
  local state = call('HGET', record, 'state')
  local is_open = state == 'queued' or state == 'running'
  if is_open then
    local before = bundle_of(chains, number)
    if bundle and before ~= bundle then call('HINCRBY', bundle, 'left', 1) end
    call('HSET', chains, number, reference)
    if before and before ~= bundle then release(before) end
    call('HSET', record, 'k' .. number, image_steps)
    call('EXPIRE', chains, UNFINISHED_TTL_S)
  end
  answer[#answer + 1] = is_open and 1 or 0
end
if bundle and call('HGET', bundle, 'left') then
  call('EXPIRE', bundle, UNFINISHED_TTL_S)
elseif bundle then
  call('DEL', bundle)
end
return answer
