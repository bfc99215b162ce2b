-- Posts a job: once for one Idempotency-Key, and within the bounds on open work and on jobs.
-- It is one script, because two processes that first check and then post could overshoot a bound
-- or post one key twice.
--
-- KEYS:
--   record: hash of the job that is posted
--   left: hash from open job to what is left of it (keys.LEFT)
--   load: hash from owner to what is left of all its open jobs (keys.LOAD)
--   interactive: sorted set of the open interactive jobs
--   bulk: sorted set of the open bulk jobs
--   idempotency?: string of the request's Idempotency-Key, if it has one (keys.idempotency_key)
-- ARGV:
--   id: of the job
--   owner: of the job
--   priority: of the job
--   image_steps: that the job counts as
--   most_of_one: image-steps that one owner may have open
--   most_of_all: image-steps that all owners may have open
--   about: what `left` says of the job besides its image-steps
--   idempotency_ttl_s: seconds that the Idempotency-Key is kept
--   most_jobs_open: jobs that one owner may have open
--   most_jobs_kept: jobs that one owner may have, with those that have ended
--   results_ttl_s: seconds that the job's images are kept
--   job_bytes: that the job's images may take at most
--   most_bytes: bytes that one owner's images may take
--   posted_at: when the job is posted
--   fingerprint_count: number of fingerprints
--   queue_count: number of queues
--   fingerprints*: hashes of the request
--   queues*: names of the queues that the job's shards go to
--   commands*: commands that post the job, each as the number of its parts and its parts
-- RESULT:
--   {verdict, id of the job, image-steps open of the owner, of all, number of owners, jobs before
--     the one that was posted, jobs open of the owner, jobs kept of the owner, bytes kept of the
--     owner}
--   verdict: 'posted', 'same' (posted before with this key), 'reused' (another request had this
--     key), 'quota' (too much of one owner), 'open' and 'kept' (too many jobs of one owner),
--     'bytes' (too many bytes of one owner's images), 'full' (too much of all)
-- include: idempotency, kept, listing, now, position, waiting
-- constants: KEPT_BY_OWNER, RECORD_PREFIX, UNFINISHED_TTL_S

local call = redis.call
local record, left, load, interactive, bulk, idempotency = unpack(KEYS)
local id, owner, priority, image_steps, most_of_one, most_of_all = unpack(ARGV, 1, 6)
local about, idempotency_ttl_s, most_jobs_open, most_jobs_kept = unpack(ARGV, 7, 10)
local results_ttl_s, job_bytes, most_bytes, posted_at = unpack(ARGV, 11, 14)
local fingerprint_count, queue_count = unpack(ARGV, 15, 16)
local first_queue = 17 + fingerprint_count
local first_command = first_queue + queue_count

if idempotency then
  local found, job = posted_with(idempotency, {unpack(ARGV, 17, first_queue - 1)})
  if found then return {found, job, 0, 0, 0, 0, 0, 0, 0} end
end

forget_expired_bytes(now(), 256)
local bytes_kept = tonumber(call('HGET', KEPT_BY_OWNER, owner) or 0)
local own, all = tonumber(call('HGET', load, owner) or 0), 0
for _, open in ipairs(call('HVALS', load)) do all = all + open end
local jobs_open = call('ZCARD', list_of(owner, 'queued')) + call('ZCARD', list_of(owner, 'running'))
local jobs_kept = call('ZCARD', list_of(owner))
local is_crowded = jobs_kept >= tonumber(most_jobs_kept)

-- Some of the owner's jobs at random, and whether their records are gone. Every post looks at
-- more jobs than it adds, so that most of what is listed is there.
local looked_at, gone = {}, {}
for _, job in ipairs(call('ZRANDMEMBER', list_of(owner), is_crowded and 64 or 4)) do
  local is_gone = call('EXISTS', RECORD_PREFIX .. job) == 0
  looked_at[job] = is_gone
  if is_gone then gone[#gone + 1] = job end
end

local verdict, before = 'posted', 0
if own + image_steps > tonumber(most_of_one) then
  verdict = 'quota'
elseif jobs_open >= tonumber(most_jobs_open) then
  verdict = 'open'
elseif is_crowded and #gone == 0 then
  verdict = 'kept'
elseif bytes_kept + job_bytes > tonumber(most_bytes) then
  verdict = 'bytes'
elseif all + image_steps > tonumber(most_of_all) then
  verdict = 'full'
end

if verdict == 'posted' then
  local i = first_command
  while i <= #ARGV do
    call(unpack(ARGV, i + 1, i + ARGV[i]))
    i = i + 1 + ARGV[i]
  end
  for q = first_queue, first_command - 1 do join_rotation(ARGV[q], false) end
  put_into(list_of(owner), id, posted_at, results_ttl_s)
  put_into(list_of(owner, 'queued'), id, posted_at, results_ttl_s)
  for job, is_gone in pairs(looked_at) do
    if is_gone then
      unlist(owner, job)
    else
      list_job(job)
    end
  end
  call('HSET', left, id, image_steps .. ' ' .. about)
  call('HINCRBY', load, owner, image_steps)
  keep_bytes(id, owner, tonumber(job_bytes), now() + UNFINISHED_TTL_S)
  if idempotency then
    call('SET', idempotency, id .. ' ' .. ARGV[17], 'EX', idempotency_ttl_s)
    call('HSET', record, 'idempotency', idempotency)
  end
  before = position(id, priority, interactive, bulk)
end
return {verdict, id, own, all, call('HLEN', load), before, jobs_open, jobs_kept,
  bytes_kept}
