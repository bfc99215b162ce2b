-- Puts jobs that a listing has met in a wrong list where they belong.
-- Those whose record is gone leave all lists.
--
-- ARGV:
--   owner: of the list
--   jobs*: ids that are in it
-- RESULT:
--   nothing
-- include: listing
-- constants: RECORD_PREFIX

local owner = ARGV[1]

for n = 2, #ARGV do
  if redis.call('EXISTS', RECORD_PREFIX .. ARGV[n]) == 1 then
    list_job(ARGV[n])
  else
    unlist(owner, ARGV[n])
  end
end
