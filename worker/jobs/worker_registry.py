"""Who works: what workers say of themselves, how fast they are, and who is alive. Knows no torch.

They are believed for as long as the job store's clock says, so that hosts' clocks need not agree. An entry of `keys.WORKERS` is
the time when it lapses, and JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from pydantic import TypeAdapter, ValidationError

from worker.jobs.domain import Precision
from worker.jobs.keys import NOW


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one model: a step of n images, `largest` at most, takes `base_s` + n `image_s`."""

    base_s: float
    image_s: float
    largest: int

    @classmethod
    def from_seconds(cls, seconds: Mapping[int, float], slowed: float = 1.0) -> Pace:
        """From the seconds of a step by batch size: the line through the smallest and the one that gives the most."""
        small, best = min(seconds), max(seconds, key=lambda size: (size / seconds[size], size))
        image_s = (
            max(0.0, (seconds[best] - seconds[small]) / (best - small)) if best > small else 0.0
        )
        return cls(slowed * max(0.0, seconds[small] - small * image_s), slowed * image_s, best)

    def step_s(self, images: float) -> float:
        return self.base_s + min(images, self.largest) * self.image_s

    @property
    def image_steps_per_s(self) -> float:
        return self.largest / self.step_s(self.largest)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """How a worker runs a model now: by so many `threads` of a CPU, 0 elsewhere.

    `kernels`: whose they are, which decides the last bits. `seconds` of a step by batch size are what calibration found for so
    many threads.
    """

    precision: Precision
    kernels: str
    threads: int
    seconds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Said every few seconds. `slowed`: how many times as long as calibrated its steps take now."""

    name: str
    device: str
    models: Mapping[str, ModelInfo]
    slowed: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def unlike(self, other: WorkerInfo) -> Iterator[str]:
        """Each model that both run, and not to the same bits, with what runs it there and here."""
        for name in sorted(self.models.keys() & other.models.keys()):
            there, here = (worker._runs(name) for worker in (other, self))
            if there != here:
                yield f"{name} in {there}, this one in {here}"

    def _runs(self, model: str) -> str:
        served = self.models[model]
        return f"{served.precision} on {self.device.partition(':')[0]} by {served.kernels}"

    def pace(self, model: str) -> Pace:
        return Pace.from_seconds(self.models[model].seconds, self.slowed)

    @property
    def image_steps_per_s(self) -> float:
        """That of full batches, of the model that it runs fastest."""
        return max(self.pace(model).image_steps_per_s for model in self.models)


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
            "a worker of another version is not counted, as what it says of itself is not understood: %.200s",
            json.decode(),
        )
        return None
