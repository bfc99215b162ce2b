"""Where a queued job stands, and how long it will take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.schemas.jobs import QueuePlace
from worker.jobs.domain import SHARD_IMAGES, Priority
from worker.jobs.keys import LEFT, open_key
from worker.jobs.policy import FLOOR, HOLDS, STRETCH
from worker.jobs.worker_registry import Pace, WorkerInfo

# Jobs of each class that an estimate looks at: 2 microseconds of Redis each, which does nothing else meanwhile.
_LOOKED_AT = 256

# The Lua function `place(id, record)`. KEYS: open interactive, open bulk, left. ARGV: images a shard, jobs looked at.
# -> false unless the job is queued, else {jobs before it} where they are too many to look at, else with it:
# its own interactive image-steps, its bulk ones, images, steps an image; of interactive work, of bulk work posted before
# it and of bulk work posted after it each image-steps, those of its owner that come first as they are less, images, other
# owners; image-steps of other models; whether there is bulk work beside its interactive
QUEUE_PLACE = """
local C, shard, most = redis.call, tonumber(ARGV[1]), tonumber(ARGV[2])
local function place(id, record)
  local state, priority, owner = unpack(C('HMGET', record, 'state', 'priority', 'owner'))
  if state ~= 'queued' then return false end
  local mine = priority == 'interactive' and KEYS[1] or KEYS[2]
  local interactive_jobs, bulk_jobs = C('ZCARD', KEYS[1]), C('ZCARD', KEYS[2])
  local before = (C('ZRANK', mine, id) or 0) + (mine == KEYS[2] and interactive_jobs or 0)
  local since, book = C('ZSCORE', mine, id), C('HGET', KEYS[3], id)
  if not (since and book) then return {before} end
  local ahead = C('ZCOUNT', KEYS[2], '-inf', '(' .. since)
  if interactive_jobs > most or ahead > most then return {before} end
  local function entry(text)
    local left, count, steps, model, whose = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (.*)$')
    left, count, steps = tonumber(left), tonumber(count), tonumber(steps)
    local first = math.min(count, shard) * steps -- of an interactive job the first shard is interactive, and done first
    return left, math.max(0, math.min(left, first - (count * steps - left))), model, whose, count, steps
  end
  local left, first, model, _, count, steps = entry(book)
  local own_interactive = mine == KEYS[1] and first or 0
  local function class() return {work = 0, smaller = 0, images = 0, owners = 0, seen = {}} end
  local interactive, earlier, later, other, posted = class(), class(), class(), 0, tonumber(since)
  later.seen = earlier.seen
  local function add(class, whose, work, images, smaller)
    class.work, class.images = class.work + work, class.images + images
    if whose == owner then
      if smaller then class.smaller = class.smaller + work end
    elseif not class.seen[whose] then
      class.seen[whose], class.owners = true, class.owners + 1
    end
  end
  local function add_bulk(whose, work, of_steps, since) -- a worker compares what it has of each, which is a shard or two
    local theirs, ours = math.min(work, shard * of_steps), math.min(left - own_interactive, shard * steps)
    local smaller = theirs < ours or theirs == ours and since < posted
    add(since < posted and earlier or later, whose, work, math.ceil(work / of_steps), smaller)
  end
  local function books(ids)
    local names, scores = {}, {}
    for i = 1, #ids, 2 do
      if ids[i] ~= id then names[#names + 1] = ids[i]; scores[#scores + 1] = tonumber(ids[i + 1]) end
    end
    return #names > 0 and C('HMGET', KEYS[3], unpack(names)) or {}, scores
  end
  local texts, scores = books(C('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'))
  for i, text in ipairs(texts) do
    if text then
      local work, now, of, whose, pictures, of_steps = entry(text)
      if of ~= model then
        other = other + work
      else
        local smaller = now < own_interactive or now == own_interactive and scores[i] < posted
        if now > 0 then add(interactive, whose, now, math.min(pictures, shard), smaller) end
        if work > now then add_bulk(whose, work - now, of_steps, scores[i]) end
      end
    end
  end
  texts, scores = books(C('ZRANGE', KEYS[2], 0, most, 'WITHSCORES'))
  for i, text in ipairs(texts) do
    if text then
      local work, _, of, whose, _, of_steps = entry(text)
      if of == model then
        add_bulk(whose, work, of_steps, scores[i])
      elseif scores[i] < posted then
        other = other + work
      end
    end
  end
  local bulk_beside = (bulk_jobs > 0 or earlier.work > 0 or left > own_interactive) and 1 or 0
  local answer = {before, own_interactive, left - own_interactive, count, steps}
  for _, class in ipairs({interactive, earlier, later}) do
    for _, field in ipairs({'work', 'smaller', 'images', 'owners'}) do answer[#answer + 1] = class[field] end
  end
  answer[#answer + 1], answer[#answer + 2] = other, bulk_beside
  return answer
end
"""
PLACE_KEYS = (open_key(Priority.INTERACTIVE), open_key(Priority.BULK), LEFT)
PLACE_ARGS = (SHARD_IMAGES, _LOOKED_AT)


def queue_place(
    answer: Sequence[int] | None, model: str, workers: Iterable[WorkerInfo]
) -> QueuePlace | None:
    if answer is None:
        return None
    position, *found = answer
    paces = [worker.pace(model) for worker in workers if model in worker.models]
    eta_s = round(_Ahead.of(found).seconds(paces), 1) if found and paces else None
    return QueuePlace(position=position, eta_s=eta_s)


@dataclass(frozen=True, slots=True)
class _Class:
    """Work of a class that others have, in image-steps; `smaller` is of the job's owner and comes first."""

    work: float
    smaller: float
    images: float
    owners: int

    def shared_with(self, own: float) -> float:
        """What is done when `own` is: owners share equally, and of one owner's jobs the one with the least left comes first."""
        return min((self.smaller + own) * (1 + self.owners), self.work + own)

    def images_beside(self, steps: int) -> float:
        """Images that step beside an image of so many steps, on the average."""
        return min(self.images, self.work / steps)

    def part(self, share: float) -> _Class:
        return _Class(share * self.work, share * self.smaller, share * self.images, self.owners)

    def __add__(self, other: _Class) -> _Class:
        return _Class(
            self.work + other.work,
            self.smaller + other.smaller,
            self.images + other.images,
            self.owners + other.owners,
        )


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What QUEUE_PLACE found."""

    own_interactive: int
    own_bulk: int
    count: int
    steps: int
    interactive: _Class
    earlier: _Class
    later: _Class
    other_models: int
    bulk_beside: int

    @classmethod
    def of(cls, found: Sequence[int]) -> _Ahead:
        own_interactive, own_bulk, count, steps, *classes, other_models, bulk_beside = found
        interactive, earlier, later = (_Class(*classes[i : i + 4]) for i in (0, 4, 8))
        return cls(
            own_interactive,
            own_bulk,
            count,
            steps,
            interactive,
            earlier,
            later,
            other_models,
            bulk_beside,
        )

    def seconds(self, paces: Sequence[Pace]) -> float:
        """Until the job has finished, at the pace of the workers that have its model."""
        rate = sum(pace.image_steps_per_s for pace in paces)
        own_s = max(self._interactive_s(paces, rate), self._bulk_s(paces, rate))
        return own_s + min(self.other_models / rate, own_s)  # models take turns in a worker

    def _interactive_s(self, paces: Sequence[Pace], rate: float) -> float:
        if not self.own_interactive:
            return 0.0
        shared = self.interactive.shared_with(self.own_interactive)
        work = shared * FLOOR / (FLOOR - 1) if self.bulk_beside else shared
        images = min(self.count, SHARD_IMAGES)
        at_once = max(images, (self.interactive.images_beside(self.steps) + images) / len(paces))
        step_s = _step_s(paces, at_once, math.inf if self.bulk_beside else at_once)
        return max(
            work / rate,
            self.own_interactive * len(paces) / rate,
            self.own_interactive / images * step_s,
        )

    def _bulk_s(self, paces: Sequence[Pace], rate: float) -> float:
        """After all that is interactive, but never with less than the floor.

        Until workers have room for the job, what was posted earlier comes first; from then on, what is less, and owners share.
        """
        if not self.own_bulk:
            return 0.0
        behind = (
            self.earlier.images
            + self.own_bulk / self.steps
            - sum(HOLDS * pace.largest for pace in paces)
        )
        before = min(1.0, max(0.0, behind) / self.earlier.images) if self.earlier.images else 0.0
        beside = self.earlier.part(1 - before) + self.later
        bulk = before * self.earlier.work + beside.shared_with(self.own_bulk)
        work = min(self.interactive.work + self.own_interactive + bulk, bulk * FLOOR)
        images = min(self.count, SHARD_IMAGES)
        of_one_shard = min(self.own_bulk, images * self.steps)
        interactive = self.interactive.images_beside(self.steps)
        others = (
            interactive
            + self.earlier.images_beside(self.steps)
            + self.later.images_beside(self.steps)
        )
        step_s = _step_s(
            paces, interactive / len(paces), max(images, (others + images) / len(paces))
        )
        own, in_one_worker = (
            self.own_interactive + self.own_bulk,
            self.own_interactive + of_one_shard,
        )
        return (work - own) / rate + max(
            own / rate, in_one_worker * len(paces) / rate, of_one_shard / images * step_s
        )


def _step_s(paces: Sequence[Pace], interactive: float, images: float) -> float:
    """Of so many images in a worker on the average; bulk ones join the interactive only as far as the engine lets them."""

    def mean_s(images: float) -> float:
        return sum(pace.step_s(images) for pace in paces) / len(paces)

    return (
        min(mean_s(images), max(mean_s(interactive), STRETCH * mean_s(1)))
        if interactive
        else mean_s(images)
    )
