-- Function `alive(workers)`: the JSON that each living worker published of itself.
-- A field of the hash `workers` holds the time when the entry lapses, a space, and JSON.
-- include: now

local function alive(workers)
  local infos, at = {}, now()
  for _, entry in ipairs(redis.call('HVALS', workers)) do
    local lapses, json = string.match(entry, '^([%d.]+) (.*)$')
    if lapses and tonumber(lapses) > at then infos[#infos + 1] = json end
  end
  return infos
end
