-- Posts a job: once for one Idempotency-Key, and within the bounds on open work.
-- It is one script, because two processes that first check and then post could overshoot a bound
-- or post one key twice.
--
-- KEYS:
--   record: hash of the job that is posted
--   left: hash from open job to the image-steps that are left of it (keys.LEFT)
--   load: hash from owner to the image-steps that are left of all its open jobs (keys.LOAD)
--   idempotency?: string of the request's Idempotency-Key, if it has one (keys.idempotency_key)
-- ARGV:
--   id: of the job
--   owner: of the job
--   image_steps: of the job
--   most_of_one: image-steps that one owner may have open
--   most_of_all: image-steps that all owners may have open
--   about: what `left` says of the job besides its image-steps
--   fingerprint: hash of the request
--   idempotency_ttl_s: seconds that the Idempotency-Key is kept
--   queue_count: number of queues
--   queues*: names of the queues that the job's shards go to
--   commands*: commands that post the job, each as the number of its parts and its parts
-- RESULT:
--   {verdict, id of the job, image-steps open of the owner, of all, number of owners}
--   verdict: 'posted', 'same' (posted before with this key), 'reused' (another request had this
--     key), 'quota' (too much of one owner), 'full' (too much of all)
-- include: waiting

local call = redis.call
local record, left, load, idempotency = unpack(KEYS)
local id, owner, image_steps, most_of_one, most_of_all = unpack(ARGV, 1, 5)
local about, fingerprint, idempotency_ttl_s, queue_count = unpack(ARGV, 6, 9)

if idempotency then
  local posted, request = string.match(call('GET', idempotency) or '', '^(%S+) (%S+)$')
  local its_record = posted and string.sub(record, 1, -1 - #id) .. posted
  if posted and call('EXISTS', its_record) == 1 then
    -- changes nothing, but as a write it makes WAITAOF wait for the first post as well
    call('EXPIRE', idempotency, call('TTL', its_record))
    return {request == fingerprint and 'same' or 'reused', posted, 0, 0, 0}
  end
end

local own, all = tonumber(call('HGET', load, owner) or 0), 0
for _, open in ipairs(call('HVALS', load)) do all = all + open end
local verdict = 'posted'
if own + image_steps > tonumber(most_of_one) then
  verdict = 'quota'
elseif all + image_steps > tonumber(most_of_all) then
  verdict = 'full'
end

if verdict == 'posted' then
  local i = 10 + queue_count
  while i <= #ARGV do
    call(unpack(ARGV, i + 1, i + ARGV[i]))
    i = i + 1 + ARGV[i]
  end
  for q = 10, 9 + queue_count do join_rotation(ARGV[q], false) end
  call('HSET', left, id, image_steps .. ' ' .. about)
  call('HINCRBY', load, owner, image_steps)
  if idempotency then
    call('SET', idempotency, id .. ' ' .. fingerprint, 'EX', idempotency_ttl_s)
    call('HSET', record, 'idempotency', idempotency)
  end
end
return {verdict, id, own, all, call('HLEN', load)}
