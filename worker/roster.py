"""Who works: what workers say of themselves, believed for as long as the job store's clock says, so that hosts' need not agree.

Knows no torch. An entry of `contract.WORKERS` is the time when it lapses, and JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError

from worker.contract import NOW
from worker.info import WorkerInfo

log = logging.getLogger(__name__)

# The Lua functions `now()` and `alive(workers)`: what the living say.
ALIVE = (
    NOW
    + """
local function alive(workers)
  local said, at = {}, now()
  for _, entry in ipairs(redis.call('HVALS', workers)) do
    local lapses, json = string.match(entry, '^([%d.]+) (.*)$')
    if lapses and tonumber(lapses) > at then said[#said + 1] = json end
  end
  return said
end
"""
)

# KEYS: workers. -> what the living say.
LOOK = ALIVE + "return alive(KEYS[1])"

# KEYS: workers. ARGV: name, JSON, for how many seconds it is to be believed. -> what the living say; the others are removed.
# A full server refuses a script whose first write needs memory. Behind another it is let through, and a worker stays known.
SAY = (
    ALIVE
    + """
redis.call('EXPIRE', KEYS[1], 4 * ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.3f %s', now() + ARGV[3], ARGV[2]))
redis.call('EXPIRE', KEYS[1], 4 * ARGV[3])
local entries, at = redis.call('HGETALL', KEYS[1]), now()
for i = 1, #entries, 2 do
  local lapses = tonumber(string.match(entries[i + 1], '^%S+'))
  if not lapses or lapses <= at then redis.call('HDEL', KEYS[1], entries[i]) end
end
return alive(KEYS[1])"""
)


def read(said: Iterable[bytes]) -> list[WorkerInfo]:
    """By name, without those that this version does not understand: while a service is renewed, workers of two versions run."""
    infos = (_parsed(json) for json in said)
    return sorted((info for info in infos if info), key=lambda info: info.name)


_WORKER = TypeAdapter(WorkerInfo)


@lru_cache(maxsize=256)
def _parsed(json: bytes) -> WorkerInfo | None:
    """Each is read by thousands of polls before the worker says the next."""
    try:
        return _WORKER.validate_json(json)
    except ValidationError:
        log.warning(
            "a worker of another version is not counted, as what it says of itself is not understood: %.200s", json.decode()
        )
        return None
