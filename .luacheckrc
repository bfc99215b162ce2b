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
    "BUNDLE_PREFIX", "BUNDLE_REFERENCE", "CHANGES", "COUNTS", "EXECUTIONS_PREFIX",
    "EXECUTION_PREFIX", "FAILED_SHARDS", "FLOOR", "IDLE", "JOBS_PREFIX", "KEPT", "KEPT_BY_OWNER",
    "KEPT_UNTIL", "LEASES", "LEASE_CLOCK",
    "PREVIEWS", "QUEUES", "QUEUE_NAMES", "QUEUE_PREFIX", "RECORD_PREFIX", "RECORD_TTL_S",
    "REMOVED_AGAIN_S", "ROTATION_PREFIX", "SHARD_IMAGES", "SHARD_PREFIX", "SHORT_QUEUE",
    "STARTED_PREFIX", "STONES", "UNFINISHED_TTL_S", "WEBHOOK_LANE_PREFIX", "WEBHOOK_OWNERS",
    "WEBHOOK_RECEIVERS_PREFIX",
    -- shared/
    "alive", "bundle_of", "claim_due", "forget_all_chains", "forget_bytes", "forget_chains",
    "forget_expired_bytes",
    "forget_lease_time_if_unused", "is_claimed", "join_rotation", "keep_bytes", "keep_list",
    "kept_of", "lane_key",
    "lease_time", "leave_if_empty", "lift", "list_job", "list_of", "now", "parts_of",
    "pass_lease_time", "position", "posted_with", "put", "put_into", "receiver_of", "release",
    "requeue_if_idle", "set_due", "set_state", "set_turn", "settle", "STATES", "tally", "unlist",
    -- shared/transition.lua
    "chains", "expiring", "finish", "hashes", "id", "is_external", "is_open", "left", "load",
    "open", "owner_of_open", "pngs", "record", "remove_objects_at", "stamp", "state", "subtract", "webhooks",
    -- shared/progress.lua
    "write_progress",
  },
}

-- What a shared file defines is used by the scripts that include it.
files["worker/jobs/lua/shared"] = {ignore = {"211"}}
