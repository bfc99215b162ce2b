-- Functions on the lists of an owner's jobs: one of all jobs, and one of those in each state.
-- A list is a sorted set of jobs by when they were posted.
-- A listing reads no more than it returns.
-- A job leaves the lists when it is deleted, or when somebody meets it there without a record.
-- No clock and no setting has a say in that.
-- include: kept
-- constants: JOBS_PREFIX, RECORD_PREFIX, RECORD_TTL_S, UNFINISHED_TTL_S

local STATES = {'queued', 'running', 'finished', 'failed', 'cancelled'}

-- Returns the key of an owner's jobs, or of those in a state.
local function list_of(owner, state)
  return JOBS_PREFIX .. owner .. (state and ':' .. state or '')
end

-- Lets a list live for as long as this job can, and for no less than it would.
local function keep_list(list, results_ttl_s)
  local ttl = UNFINISHED_TTL_S + results_ttl_s + RECORD_TTL_S
  redis.call('EXPIRE', list, ttl, 'NX')
  redis.call('EXPIRE', list, ttl, 'GT')
end

-- Puts a job into the list of its state.
local function put_into(list, job, posted_at, results_ttl_s)
  -- a full server refuses to add what is there already
  if not redis.call('ZSCORE', list, job) then redis.call('ZADD', list, posted_at, job) end
  keep_list(list, results_ttl_s)
end

-- Puts a job where its record says, and takes it out of all other lists.
-- Versions of the service without lists of states have left it in none, or in the wrong one.
local function list_job(job)
  local current, owner, posted_at, ttl = unpack(redis.call(
    'HMGET', RECORD_PREFIX .. job, 'state', 'owner', 'created_at', 'results_ttl_s'))
  if not (current and owner and posted_at and ttl) then return end
  put_into(list_of(owner), job, posted_at, ttl)
  put_into(list_of(owner, current), job, posted_at, ttl)
  for _, other in ipairs(STATES) do
    if other ~= current then redis.call('ZREM', list_of(owner, other), job) end
  end
end

-- Takes a job that is gone out of all lists, and forgets what its images took.
local function unlist(owner, job)
  forget_bytes(job)
  redis.call('ZREM', list_of(owner), job)
  for _, state in ipairs(STATES) do redis.call('ZREM', list_of(owner, state), job) end
end

-- Sets a job's state, and moves the job to the list of that state.
local function set_state(job, to)
  local from, owner, posted_at, ttl = unpack(redis.call(
    'HMGET', RECORD_PREFIX .. job, 'state', 'owner', 'created_at', 'results_ttl_s'))
  redis.call('HSET', RECORD_PREFIX .. job, 'state', to)
  if not (owner and posted_at and ttl) then return end
  if from then redis.call('ZREM', list_of(owner, from), job) end
  put_into(list_of(owner, to), job, posted_at, ttl)
end
