-- Reads the previews of images, and asks the workers for those that are not there.
-- However many clients wait for an image, its worker is asked a few times a second.
--
-- KEYS:
--   images*(record, hashes, preview, asked): of each image its job's hash and hashes, its preview,
--     and the key that is there while a worker has been asked for it
-- ARGV:
--   ask: 1 to ask for previews that are not there, else 0
--   names*(job, index): of each image
-- RESULT:
--   {record, sha256, preview} of each image, the last two false if they are not there
-- constants: PREVIEWS

local ask = ARGV[1] == '1'

local found = {}
for n = 1, #KEYS / 4 do
  local record, hashes, preview, asked = unpack(KEYS, 4 * n - 3, 4 * n)
  local job, index = ARGV[2 * n], ARGV[2 * n + 1]
  local sha256, png = redis.call('HGET', hashes, index), redis.call('GET', preview)
  if ask and not sha256 and not png and redis.call('HGET', record, 'state') == 'running' then
    if redis.call('SET', asked, 1, 'NX', 'PX', 300) then
      redis.call('PUBLISH', PREVIEWS, job .. ' ' .. index)
    end
  end
  found[n] = {redis.call('HGETALL', record), sha256, png}
end
return found
