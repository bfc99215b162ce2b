"""The numbers that the API, the engine and the intake share.

They say how bulk work is held back, and how long records live.
"""

from __future__ import annotations

# Nothing waits or runs this long. A job that ends gives its keys a time of their own.
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
# A worker takes bulk work until it has this many of its largest batches at hand.
HOLDS = 2
# Bulk chains join an interactive step up to this many times what one chain by itself would take.
STRETCH = 2.5
