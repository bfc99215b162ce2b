"""The numbers that the API, the engine and the intake share: how bulk work is held back, and how long records live."""

from __future__ import annotations

UNFINISHED_TTL_S = (
    7 * 24 * 3600
)  # nothing waits or runs this long; keys of a job that ends are given their own TTL
FLOOR = 8  # while they wait, bulk chains have one place in this many beside interactive ones
HOLDS = 2  # a worker takes bulk work until it has this many of its largest batches at hand
STRETCH = 2.5  # bulk chains join an interactive step up to this many times what one chain by itself would take
RECORD_TTL_S = (
    7 * 24 * 3600
)  # a job's record outlives its images by this, so that they are known to have expired
