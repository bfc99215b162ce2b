"""What happens to a job, as server-sent events. They are derived from its record: no log of them is kept.

An event's id says all that its reader has been told, so any process can go on where another one was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from fastapi.sse import format_sse_event

from app.records.record import Record, utc
from app.schemas.events import ImageEvent, StateEvent
from app.schemas.jobs import Progress
from worker.jobs.domain import MAX_COUNT, State

LAST_EVENT_ID_PATTERN = f"^[0-4]-[0-9a-f]{{1,{MAX_COUNT // 4}}}$"
_NOTHING, _QUEUED, _RUNNING, _ENDED, _QUEUED_AGAIN = range(
    5
)  # the state that was told last, as ids have it

Event = StateEvent | ImageEvent | Progress
_NAMES = {StateEvent: "state", ImageEvent: "image", Progress: "progress"}


@dataclass(frozen=True, slots=True)
class ReaderPosition:
    """What one reader knows: the state it was told last, images as bits from the job's first on, and how far the job was."""

    state: int = _NOTHING
    images: int = 0
    progress: tuple[int, int, float] | None = (
        None  # not in the id: who comes back is told the newest
    )

    @classmethod
    def parse(cls, event_id: str) -> ReaderPosition:
        """Of a text that matches LAST_EVENT_ID_PATTERN."""
        state, _, images = event_id.partition("-")
        return cls(int(state), int(images, 16))

    def __str__(self) -> str:
        return f"{self.state}-{self.images:x}"

    @property
    def everything(self) -> bool:
        return self.state == _ENDED


class JobView:
    """A job as one look found it. What it has to say is put into bytes once for all who know the same."""

    def __init__(self, record: Record, hashes: Mapping[bytes, bytes]) -> None:
        self.record = record
        self._hashes = {int(index): digest.decode() for index, digest in hashes.items()}
        self._progress = record.progress(len(hashes), time.time())
        self._news: dict[ReaderPosition, tuple[bytes, ReaderPosition]] = {}

    @cached_property
    def running(self) -> frozenset[int]:
        """Indices of the images that a worker has taken and not finished."""
        return frozenset(self.record.running) - self._hashes.keys()

    def news(self, told: ReaderPosition) -> tuple[bytes, ReaderPosition]:
        """What is new to a reader, and what it knows afterwards."""
        if told not in self._news:
            self._news[told] = self._write(told)
        return self._news[told]

    def _write(self, told: ReaderPosition) -> tuple[bytes, ReaderPosition]:
        text, then = b"", told
        for event, then in self._events(told):
            text += format_sse_event(
                event=_NAMES[type(event)], data_str=event.model_dump_json(), id=str(then)
            )
        return text, then

    def _events(self, told: ReaderPosition) -> Iterator[tuple[Event, ReaderPosition]]:
        """A final state comes last: after it there is nothing to wait for."""
        for state in self._states(told.state):
            told = replace(told, state=state)
            yield self._state_event(state), told
        for place, image in self._images(told):
            told = replace(told, images=told.images | 1 << place)
            yield image, told
        if told.progress != (
            now := (self._progress.step, self._progress.images_done, self._progress.fraction)
        ):
            told = replace(told, progress=now)
            yield self._progress, told
        if self.record.state.final:
            yield self._state_event(_ENDED), replace(told, state=_ENDED)

    def _states(self, told: int) -> Iterator[int]:
        """Up to the present one, unless that is final. Of a job that went back and forth unseen, only where it is now is told."""
        if told < _QUEUED:
            yield (told := _QUEUED)
        if told < _RUNNING and self.record.started_at:
            yield (told := _RUNNING)
        if told != (now := self._now) and now != _ENDED:
            yield now

    @property
    def _now(self) -> int:
        record = self.record
        if record.state is State.QUEUED:
            return _QUEUED_AGAIN if record.started_at else _QUEUED
        return _RUNNING if record.state is State.RUNNING else _ENDED

    def _state_event(self, state: int) -> StateEvent:
        record = self.record
        if state == _ENDED:
            return StateEvent(state=record.state, at=utc(record.finished_at), error=record.error)
        if state == _RUNNING:
            return StateEvent(state=State.RUNNING, at=utc(record.started_at), error=None)
        return StateEvent(state=State.QUEUED, at=utc(record.created_at), error=None)

    def _images(self, told: ReaderPosition) -> Iterator[tuple[int, ImageEvent]]:
        for index in sorted(self._hashes):
            place = index - self.record.start
            if not told.images >> place & 1:
                yield (
                    place,
                    ImageEvent(
                        index=index, url=self.record.image_url(index), sha256=self._hashes[index]
                    ),
                )
