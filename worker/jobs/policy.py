"""The numbers that the API, the engine and the intake share.

They say how bulk work is held back, and how long records live.
"""

from __future__ import annotations

# What the keys of an open job live. The reaper prolongs them in time, for as long as the job waits
# or runs, and a job that ends gives them a time of their own.
UNFINISHED_TTL_S = 7 * 24 * 3600
# A job's record outlives its images by this, so that they are known to have expired.
RECORD_TTL_S = 7 * 24 * 3600
# Workers remove a deleted job's objects once more after this: one may just have been writing.
REMOVED_AGAIN_S = 60
# While they wait, bulk chains have one place in this many beside interactive ones, and of the
# shards that a worker takes one in this many is bulk.
FLOOR = 8
# In a queue of up to so many shards a withdrawn one is searched, which takes some microseconds.
SHORT_QUEUE = 256
# A worker takes work until it has one of its largest batches and so many seconds of work at hand.
AT_HAND_S = 2.0
# It also takes interactive shards until it holds so many, and then those of owners of whom it holds
# nothing, until it holds so many owners'.
SHARDS_AT_HAND = 10
OWNERS_AT_HAND = 10
# A worker takes bulk work until it has this many of its largest batches at hand, at most.
HOLDS = 2
# Bulk chains join an interactive step up to this many times what one chain by itself would take.
STRETCH = 2.5
