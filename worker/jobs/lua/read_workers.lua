-- Reads the workers that are alive.
--
-- KEYS:
--   workers: hash of the workers (keys.WORKERS)
-- RESULT:
--   the JSON of each
-- include: alive

return alive(KEYS[1])
