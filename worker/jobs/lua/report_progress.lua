-- Writes how far a shard has come, and subtracts the work that was done since the last report.
--
-- ARGV:
--   field: the shard's field of the record (keys.progress_field)
--   progress: the step of its least advanced image, a comma, and its image-steps that are done
-- RESULT:
--   1, or 0 if the job has ended or is gone: the worker drops its chains
-- include: progress

if not is_open() then return 0 end
write_progress(unpack(ARGV))
return 1
