-- Lua runs in the server of the job store (worker/jobs/lua), which is Lua 5.1 with these globals.
std = "lua51"
max_line_length = 100

-- Lua has these by itself, but not in the server.
not_globals = {
  "arg", "debug", "dofile", "io", "load", "loadfile", "module", "newproxy", "package", "print",
  "require",
}

read_globals = {
  "KEYS",
  "ARGV",
  redis = {fields = {"call", "pcall", "error_reply", "status_reply", "sha1hex", "log"}},
  "bit",
  "cjson",
  "cmsgpack",
  "struct",
}

-- The loader puts constants and shared files before a script, as its header says.
-- tests/unit/worker/jobs/test_scripts.py holds that each script names those that it uses.
files["worker/jobs/lua"] = {
  read_globals = {
    -- constants of worker/jobs/scripts.py
    "CHANGES", "EXECUTIONS_PREFIX", "EXECUTION_PREFIX", "FAILED_SHARDS", "FLOOR", "LEASES",
    "PREVIEWS", "QUEUES", "QUEUE_PREFIX", "RECORD_PREFIX", "RECORD_TTL_S", "REMOVED_AGAIN_S",
    "ROTATION_PREFIX", "SHARD_IMAGES", "SHARD_PREFIX", "SHORT_QUEUE", "STARTED_PREFIX", "STONES",
    "UNFINISHED_TTL_S",
    -- shared/
    "alive", "claim_due", "is_claimed", "join_rotation", "leave_if_empty", "now", "parts_of", "put",
    "queue_place", "requeue_if_idle", "set_turn", "settle",
    -- shared/transition.lua
    "chains", "expiring", "finish", "hashes", "id", "is_external", "is_open", "left", "load",
    "open", "pngs", "record", "remove_objects_at", "stamp", "state", "subtract", "webhooks",
  },
}

-- What a shared file defines is used by the scripts that include it.
files["worker/jobs/lua/shared"] = {ignore = {"211"}}
