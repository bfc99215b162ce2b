-- Ends a job as cancelled, unless it has ended.
--
-- RESULT:
--   the job's state afterwards, or false if it is gone
-- include: transition

if is_open() then finish('cancelled') end
return state()
