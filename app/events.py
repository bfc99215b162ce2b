"""What happens to a job, as server-sent events. They are derived from its record: no log of them is kept.

An event's id says all that its reader has been told, so any process can go on where another one was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fastapi.sse import format_sse_event

from app.record import Record, utc
from app.schemas import ImageEvent, Progress, StateEvent
from worker.contract import MAX_COUNT, State

LAST_EVENT_ID_PATTERN = f"^[0-3]-[0-9a-f]{{1,{MAX_COUNT // 4}}}$"
_RANK = {State.QUEUED: 1, State.RUNNING: 2}  # of a final state: 3

Event = StateEvent | ImageEvent | Progress
_NAMES = {StateEvent: "state", ImageEvent: "image", Progress: "progress"}


@dataclass(frozen=True, slots=True)
class Told:
    """What one reader knows: the job's states up to a rank, images as bits from the job's first on, and how far it was."""

    rank: int = 0
    images: int = 0
    progress: tuple[int, int, float] | None = None  # not in the id: who comes back is told the newest

    @classmethod
    def parse(cls, event_id: str) -> Told:
        """Of a text that matches LAST_EVENT_ID_PATTERN."""
        rank, _, images = event_id.partition("-")
        return cls(int(rank), int(images, 16))

    def __str__(self) -> str:
        return f"{self.rank}-{self.images:x}"

    @property
    def everything(self) -> bool:
        return self.rank == 3


class View:
    """A job as one look found it. What it has to say is put into bytes once for all who know the same."""

    def __init__(self, record: Record, hashes: Mapping[bytes, bytes]) -> None:
        self.record = record
        self._hashes = {int(index): digest.decode() for index, digest in hashes.items()}
        self._progress = record.progress(len(hashes), time.time())
        self._news: dict[Told, tuple[bytes, Told]] = {}

    def news(self, told: Told) -> tuple[bytes, Told]:
        """What is new to a reader, and what it knows afterwards."""
        if told not in self._news:
            self._news[told] = self._write(told)
        return self._news[told]

    def _write(self, told: Told) -> tuple[bytes, Told]:
        text, then = b"", told
        for event, then in self._events(told):
            text += format_sse_event(event=_NAMES[type(event)], data_str=event.model_dump_json(), id=str(then))
        return text, then

    def _events(self, told: Told) -> Iterator[tuple[Event, Told]]:
        """The final state comes last: after it there is nothing to wait for."""
        *earlier, last = self._states()
        for event in earlier if last.state.final else [*earlier, last]:
            if _RANK[event.state] > told.rank:
                told = replace(told, rank=_RANK[event.state])
                yield event, told
        for place, image in self._images(told):
            told = replace(told, images=told.images | 1 << place)
            yield image, told
        progress = self._progress
        if told.progress != (now := (progress.step, progress.images_done, progress.fraction)):
            told = replace(told, progress=now)
            yield progress, told
        if last.state.final and not told.everything:
            yield last, replace(told, rank=3)

    def _states(self) -> list[StateEvent]:
        """All that the job has been in, in order."""
        record = self.record
        reached = [(State.QUEUED, record.created_at), (State.RUNNING, record.started_at), (record.state, record.finished_at)]
        return [StateEvent(state=state, at=utc(at), error=record.error if state.final else None) for state, at in reached if at]

    def _images(self, told: Told) -> Iterator[tuple[int, ImageEvent]]:
        for index in sorted(self._hashes):
            place = index - self.record.start
            if not told.images >> place & 1:
                yield place, ImageEvent(index=index, url=self.record.image_url(index), sha256=self._hashes[index])
