-- Function `queue_place(id, record, queue)`: where a job stands in the queue.
-- `queue` has the keys of the open jobs, `interactive` and `bulk`, and of `left`, the work that is
-- left of each; `most` jobs of each priority are read.
--
-- It returns false unless the job is queued, {jobs before it} if they are too many to read, else:
--   jobs before it,
--   its own interactive image-steps, its bulk image-steps, its images, its steps an image,
--   then three times (of interactive work, of bulk work that was posted before the job, and of
--   bulk work that was posted after it):
--     image-steps, those of the same owner that come first because they are less, images,
--     other owners,
--   image-steps of other models,
--   1 if there is bulk work besides the job's interactive work, else 0
-- constants: SHARD_IMAGES

local function queue_place(id, record, queue)
  local call = redis.call
  local state, priority, owner = unpack(call('HMGET', record, 'state', 'priority', 'owner'))
  if state ~= 'queued' then return false end
  local is_interactive = priority == 'interactive'
  local mine = is_interactive and queue.interactive or queue.bulk
  local interactive_jobs, bulk_jobs = call('ZCARD', queue.interactive), call('ZCARD', queue.bulk)
  local before = (call('ZRANK', mine, id) or 0) + (is_interactive and 0 or interactive_jobs)
  local since, own_entry = call('ZSCORE', mine, id), call('HGET', queue.left, id)
  if not (since and own_entry) then return {before} end
  local ahead = call('ZCOUNT', queue.bulk, '-inf', '(' .. since)
  if interactive_jobs > queue.most or ahead > queue.most then return {before} end

  -- The first shard of an interactive job is interactive, and is done first.
  local function parse(entry)
    local left, count, steps, model, whose = string.match(entry, '^(%S+) (%S+) (%S+) (%S+) (.*)$')
    left, count, steps = tonumber(left), tonumber(count), tonumber(steps)
    local done = count * steps - left
    local interactive = math.max(0, math.min(left, math.min(count, SHARD_IMAGES) * steps - done))
    return left, interactive, model, whose, count, steps
  end

  local left, first, model, _, count, steps = parse(own_entry)
  local own_interactive = is_interactive and first or 0
  local own_bulk = left - own_interactive

  local function class() return {work = 0, smaller = 0, images = 0, owners = 0, seen = {}} end
  local interactive, earlier, later = class(), class(), class()
  local other_models, posted = 0, tonumber(since)
  later.seen = earlier.seen

  local function add(to, whose, work, images, is_smaller)
    to.work, to.images = to.work + work, to.images + images
    if whose == owner then
      if is_smaller then to.smaller = to.smaller + work end
    elseif not to.seen[whose] then
      to.seen[whose], to.owners = true, to.owners + 1
    end
  end

  -- A worker compares what it has of each job, which is a shard or two.
  local function add_bulk(whose, work, its_steps, its_time)
    local theirs = math.min(work, SHARD_IMAGES * its_steps)
    local ours = math.min(own_bulk, SHARD_IMAGES * steps)
    local is_earlier = its_time < posted
    local is_smaller = theirs < ours or theirs == ours and is_earlier
    add(is_earlier and earlier or later, whose, work, math.ceil(work / its_steps), is_smaller)
  end

  -- Returns the entries in `left` and the times of posting, in the same order, without the job's.
  local function entries(ids_and_scores)
    local ids, scores = {}, {}
    for i = 1, #ids_and_scores, 2 do
      if ids_and_scores[i] ~= id then
        ids[#ids + 1] = ids_and_scores[i]
        scores[#scores + 1] = tonumber(ids_and_scores[i + 1])
      end
    end
    return #ids > 0 and call('HMGET', queue.left, unpack(ids)) or {}, scores
  end

  local found, scores = entries(call('ZRANGE', queue.interactive, 0, -1, 'WITHSCORES'))
  for i, entry in ipairs(found) do
    if entry then
      local work, now, its_model, whose, images, its_steps = parse(entry)
      if its_model ~= model then
        other_models = other_models + work
      else
        local is_smaller = now < own_interactive or now == own_interactive and scores[i] < posted
        if now > 0 then add(interactive, whose, now, math.min(images, SHARD_IMAGES), is_smaller) end
        if work > now then add_bulk(whose, work - now, its_steps, scores[i]) end
      end
    end
  end

  found, scores = entries(call('ZRANGE', queue.bulk, 0, queue.most, 'WITHSCORES'))
  for i, entry in ipairs(found) do
    if entry then
      local work, _, its_model, whose, _, its_steps = parse(entry)
      if its_model == model then
        add_bulk(whose, work, its_steps, scores[i])
      elseif scores[i] < posted then
        other_models = other_models + work
      end
    end
  end

  local answer = {before, own_interactive, own_bulk, count, steps}
  for _, of in ipairs({interactive, earlier, later}) do
    for _, field in ipairs({'work', 'smaller', 'images', 'owners'}) do
      answer[#answer + 1] = of[field]
    end
  end
  answer[#answer + 1] = other_models
  answer[#answer + 1] = (bulk_jobs > 0 or earlier.work > 0 or own_bulk > 0) and 1 or 0
  return answer
end
