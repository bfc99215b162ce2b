"""Where a queued job stands, and how long it will take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.schemas import QueuePlace
from worker.contract import FLOOR, LEFT, SHARD_IMAGES, STRETCH, Priority, job_key, open_key
from worker.info import Pace, WorkerInfo

# Jobs of each class that an estimate looks at: 2 microseconds of Redis each, which does nothing else meanwhile.
_LOOKED_AT = 256

# KEYS: open interactive, open bulk, left, record. ARGV: id, images a shard, jobs looked at.
# -> false unless the job is queued, else {jobs before it} where they are too many to look at, else with it image-steps:
# its own interactive, its own bulk; interactive of its owner that comes before it, of all; bulk before it; of other models;
# then images of interactive jobs, other owners of them, whether there is bulk work beside it, its images, its steps
QUEUE_PLACE = """
local C, shard, most = redis.call, tonumber(ARGV[2]), tonumber(ARGV[3])
local state, priority, owner = unpack(C('HMGET', KEYS[4], 'state', 'priority', 'owner'))
if state ~= 'queued' then return false end
local mine = priority == 'interactive' and KEYS[1] or KEYS[2]
local urgent_jobs, patient_jobs = C('ZCARD', KEYS[1]), C('ZCARD', KEYS[2])
local before = (C('ZRANK', mine, ARGV[1]) or 0) + (mine == KEYS[2] and urgent_jobs or 0)
local since, book = C('ZSCORE', mine, ARGV[1]), C('HGET', KEYS[3], ARGV[1])
if not (since and book) then return {before} end
local earlier = C('ZCOUNT', KEYS[2], '-inf', '(' .. since)
if urgent_jobs > most or earlier > most then return {before} end
local function entry(text)
  local left, count, steps, model, whose = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (.*)$')
  left, count, steps = tonumber(left), tonumber(count), tonumber(steps)
  local first = math.min(count, shard) * steps -- of an interactive job the first shard is interactive, and done first
  return left, math.max(0, math.min(left, first - (count * steps - left))), math.min(count, shard), model, whose, count, steps
end
local left, first, _, model, _, count, steps = entry(book)
local own_urgent = mine == KEYS[1] and first or 0
local smaller, urgent, patient, other, images, others, seen = 0, 0, 0, 0, 0, 0, {}
local function books(ids) return #ids > 0 and C('HMGET', KEYS[3], unpack(ids)) or {} end
local ids = C('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local names, scores = {}, {}
for i = 1, #ids, 2 do
  if ids[i] ~= ARGV[1] then names[#names + 1] = ids[i]; scores[#scores + 1] = tonumber(ids[i + 1]) end
end
local posted = tonumber(since)
for i, text in ipairs(books(names)) do
  if text then
    local work, now, pictures, of, whose = entry(text)
    if of ~= model then
      other = other + work
    else
      if now > 0 then
        urgent, images = urgent + now, images + pictures
        if whose ~= owner then
          if not seen[whose] then seen[whose] = true; others = others + 1 end
        elseif now < own_urgent or now == own_urgent and scores[i] < posted then
          smaller = smaller + now
        end
      end
      if work > now and scores[i] < posted then patient = patient + work - now end
    end
  end
end
for _, text in ipairs(books(C('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. since))) do
  if text then
    local work, _, _, of = entry(text)
    if of == model then patient = patient + work else other = other + work end
  end
end
local beside = (patient_jobs > 0 or patient > 0 or left > own_urgent) and 1 or 0
return {before, own_urgent, left - own_urgent, smaller, urgent, patient, other, images, others, beside, count, steps}"""


def place_keys(job: str) -> list[str]:
    return [open_key(Priority.INTERACTIVE), open_key(Priority.BULK), LEFT, job_key(job)]


def place_args(job: str) -> list[str | int]:
    return [job, SHARD_IMAGES, _LOOKED_AT]


def queue_place(answer: Sequence[int] | None, model: str, workers: Iterable[WorkerInfo]) -> QueuePlace | None:
    if answer is None:
        return None
    position, *ahead = answer
    paces = [worker.pace(model) for worker in workers if model in worker.models]
    eta_s = round(_Ahead(*ahead).seconds(paces), 1) if ahead and paces else None
    return QueuePlace(position=position, eta_s=eta_s)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What QUEUE_PLACE found, in image-steps; `images` and `owners` are those of the interactive jobs beside it."""

    own_urgent: int
    own_patient: int
    smaller: int
    urgent: int
    patient: int
    other_models: int
    images: int
    owners: int
    beside: int
    count: int
    steps: int

    def seconds(self, paces: Sequence[Pace]) -> float:
        """Until the job has finished, at the pace of the workers that have its model."""
        rate = sum(pace.image_steps_per_s for pace in paces)
        own_s = max(self._urgent_s(paces, rate), self._patient_s(paces, rate))
        return own_s + min(self.other_models / rate, own_s)  # models take turns in a worker

    def _urgent_s(self, paces: Sequence[Pace], rate: float) -> float:
        """Owners share equally, and of one owner's jobs the one with the least left comes first."""
        if not self.own_urgent:
            return 0.0
        shared = min((self.smaller + self.own_urgent) * (1 + self.owners), self.urgent + self.own_urgent)
        work = shared * FLOOR / (FLOOR - 1) if self.beside else shared
        images = min(self.count, SHARD_IMAGES)
        at_once = max(images, (self.images + images) / len(paces))
        step_s, alone_s = (_mean(pace.step_s(n) for pace in paces) for n in (at_once, 1))
        if self.beside:
            step_s = max(step_s, min(_mean(pace.step_s(pace.largest) for pace in paces), STRETCH * alone_s))
        return max(work / rate, self.own_urgent * len(paces) / rate, self.own_urgent / images * step_s)

    def _patient_s(self, paces: Sequence[Pace], rate: float) -> float:
        """After all that is interactive, but never with less than the floor."""
        if not self.own_patient:
            return 0.0
        bulk = self.patient + self.own_patient
        work = min(self.urgent + self.own_urgent + bulk, bulk * FLOOR)
        images = min(self.count, SHARD_IMAGES)
        at_once = images if not (self.urgent or self.patient) else SHARD_IMAGES
        step_s = _mean(pace.step_s(at_once) for pace in paces)
        of_one_shard = min(self.own_patient, images * self.steps)
        in_one_worker = self.own_urgent + of_one_shard
        return max(work / rate, in_one_worker * len(paces) / rate, of_one_shard / images * step_s)


def _mean(seconds: Iterable[float]) -> float:
    values = list(seconds)
    return sum(values) / len(values)


def alive(workers: Iterable[bytes], now: float) -> list[WorkerInfo]:
    """Those that have not outlived what they last said of themselves."""
    infos = (WorkerInfo.from_json(worker) for worker in workers)
    return sorted((info for info in infos if info.until > now), key=lambda info: info.name)
