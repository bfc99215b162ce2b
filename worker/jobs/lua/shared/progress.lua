-- Function `write_progress(field, progress)`: how far a shard of an open job has come.
-- It subtracts the work that was done since the last report.
-- `field` is the shard's field of the record (keys.progress_field). `progress` is the step of its
-- least advanced image, a comma, and its image-steps that are done.
-- include: transition

local function write_progress(field, progress)
  local function done(value) return tonumber(string.match(value or '', ',(%d+)')) or 0 end
  local before = redis.call('HGET', record, field)
  redis.call('HSET', record, field, progress)
  local cost = tonumber(redis.call('HGET', record, 'cost') or 1)
  subtract(id, cost * (done(progress) - done(before)))
end
