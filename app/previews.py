"""What an image looks like so far, asked of whichever worker runs it."""

from __future__ import annotations

import asyncio
import time

from redis.asyncio import Redis

from app.errors import NoPreview, UnknownImage
from app.look import as_hash, check, known
from worker.contract import PREVIEWS, State, job_key, preview_key, sha256_key

_WITHIN_S = 3.0  # a step takes a second at most, and a worker may have others to take first
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.2  # much less than a preview lives

# KEYS: record, hashes, preview, who has asked. ARGV: job, index, owner. -> record, hash of the finished image, preview.
# However many clients want to see an image, its worker is asked a few times a second.
_LOOK = f"""
local fields, sha256, png = redis.call('HGETALL', KEYS[1]), redis.call('HGET', KEYS[2], ARGV[2]), redis.call('GET', KEYS[3])
local state, owner = unpack(redis.call('HMGET', KEYS[1], 'state', 'owner'))
if state == '{State.RUNNING}' and owner == ARGV[3] and not sha256 and not png then
  if redis.call('SET', KEYS[4], 1, 'NX', 'PX', 300) then redis.call('PUBLISH', '{PREVIEWS}', ARGV[1] .. ' ' .. ARGV[2]) end
end
return {{fields, sha256, png}}"""


async def preview(redis: Redis, job: str, owner: str, index: int) -> bytes | None:
    """A PNG of x_0_hat as it stands; None for an image that is finished. Raises UnknownJob, UnknownImage or NoPreview."""
    check(job)
    until, pause_s = time.monotonic() + _WITHIN_S, _FIRST_PAUSE_S
    key = preview_key(job, index)
    while True:
        keys = [job_key(job), sha256_key(job), key, f"{key}:asked"]
        fields, sha256, png = await redis.eval(_LOOK, len(keys), *keys, job, index, owner)
        record = known(job, owner, as_hash(fields))
        if index not in record.indices:
            raise UnknownImage(index, record.start, record.count)
        if sha256 or png:
            return None if sha256 else bytes(png)
        if record.state is not State.RUNNING or time.monotonic() > until:
            raise NoPreview(index, record.state)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
