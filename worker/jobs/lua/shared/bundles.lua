-- Functions on bundles, in which the saved chains of shards lie together.
-- The field of a shard in its job's `chains` refers to a bundle, or holds something else: nothing
-- for chains in the results store, or the chains themselves as versions before bundles wrote them.
-- A bundle counts the fields that refer to it, and goes with the last of them.
-- constants: BUNDLE_PREFIX, BUNDLE_REFERENCE

-- Returns the key of the bundle that a field refers to, or nil. Chains themselves are longer.
local function bundle_of(chains, shard)
  if redis.call('HSTRLEN', chains, shard) > 100 then return nil end
  local reference = redis.call('HGET', chains, shard) or ''
  if string.sub(reference, 1, #BUNDLE_REFERENCE) ~= BUNDLE_REFERENCE then return nil end
  return BUNDLE_PREFIX .. string.sub(reference, #BUNDLE_REFERENCE + 1)
end

-- Counts one field less.
local function release(bundle)
  if redis.call('HINCRBY', bundle, 'left', -1) <= 0 then redis.call('DEL', bundle) end
end

-- Removes the saved chains of a shard.
local function forget_chains(chains, shard)
  local bundle = bundle_of(chains, shard)
  redis.call('HDEL', chains, shard)
  if bundle then release(bundle) end
end

-- Removes the saved chains of a job.
local function forget_all_chains(chains)
  local shards = redis.call('HKEYS', chains)
  if #shards == 0 then return end
  local bundles = {}
  for _, shard in ipairs(shards) do bundles[#bundles + 1] = bundle_of(chains, shard) end
  redis.call('DEL', chains)
  for _, bundle in ipairs(bundles) do release(bundle) end
end
