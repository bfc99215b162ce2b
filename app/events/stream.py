"""A job's progress as server-sent events, derived from its record: there is no log of events.

An event's id says all that its reader has been sent, so any process can go on where another one
was cut off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from fastapi.sse import format_sse_event

from app.records.links import ROOT_PATH
from app.records.record import Record, utc
from app.schemas.events import ImageEvent, ProgressEvent, StateEvent
from worker.jobs.domain import MAX_COUNT, State

LAST_EVENT_ID_PATTERN = f"^[0-4]-[0-9a-f]{{1,{MAX_COUNT // 4}}}$"
# The state that a reader was sent last, as ids of events have it.
_NOTHING, _QUEUED, _RUNNING, _ENDED, _QUEUED_AGAIN = range(5)

# Events that are written before other requests are answered: 2 ms.
_AT_ONCE = 64

Event = StateEvent | ImageEvent | ProgressEvent


@dataclass(frozen=True, slots=True)
class ReaderPosition:
    """How much of a job one reader has been sent. Its text is the id of the last event.

    Attributes:
        state: The last state.
        images: The finished images, a bit for each, the lowest for the job's first.
        progress: Step, finished images and fraction. It is not in the id: a reader who comes
            back gets the newest.
    """

    state: int = _NOTHING
    images: int = 0
    progress: tuple[int, int, float] | None = None

    @classmethod
    def parse(cls, event_id: str) -> ReaderPosition:
        """Parse a text that matches `LAST_EVENT_ID_PATTERN`."""
        state, _, images = event_id.partition("-")
        return cls(int(state), int(images, 16))

    def __str__(self) -> str:
        return f"{self.state}-{self.images:x}"

    @property
    def at_end(self) -> bool:
        """Say whether the final state was sent, after which nothing is to come."""
        return self.state == _ENDED


class JobView:
    """A job as one read found it, and the events that it makes.

    Events are written once for all readers who are at the same position.
    """

    def __init__(self, record: Record, digests: Mapping[bytes, bytes]) -> None:
        """View a record.

        Args:
            record: The job.
            digests: The sha256 of each finished image, by index.
        """
        self.record = record
        self._digests = {int(index): digest.decode() for index, digest in digests.items()}
        self._progress = record.progress(len(digests), time.time())
        # By root path too, which is a part of the images' URLs.
        self._written: dict[tuple[str, ReaderPosition], tuple[bytes, ReaderPosition]] = {}

    @cached_property
    def running(self) -> frozenset[int]:
        """Indices of the images that a worker has taken and not finished."""
        return frozenset(self.record.running) - self._digests.keys()

    def events_after(self, position: ReaderPosition) -> tuple[bytes, ReaderPosition]:
        """Write what is new to a reader, and give the position that it is at afterwards.

        It is written a part at a time: there may be more until the text is empty.
        """
        key = ROOT_PATH.get(), position
        if key not in self._written:
            self._written[key] = self._write(position)
        return self._written[key]

    def _write(self, position: ReaderPosition) -> tuple[bytes, ReaderPosition]:
        text = b""
        for event, after in islice(self._events(position), _AT_ONCE):
            text += format_sse_event(
                event=event.type, data_str=event.model_dump_json(), id=str(after)
            )
            position = after
        return text, position

    def _events(self, position: ReaderPosition) -> Iterator[tuple[Event, ReaderPosition]]:
        """Give each event and the position after it.

        A final state comes last, since nothing is to come after it.
        """
        for state in self._states(position.state):
            position = replace(position, state=state)
            yield self._state_event(state), position
        for bit, image in self._images(position):
            position = replace(position, images=position.images | 1 << bit)
            yield image, position
        now = self._progress
        progress = (now.step, now.images_done, now.fraction)
        if progress != position.progress:
            position = replace(position, progress=progress)
            yield ProgressEvent(**now.model_dump()), position
        if self.record.state.final:
            yield self._state_event(_ENDED), replace(position, state=_ENDED)

    def _states(self, last: int) -> Iterator[int]:
        """Give the states after `last`, up to the present one unless that is final.

        A job may have gone back and forth between two reads. Only where it is now is given then.
        """
        if last < _QUEUED:
            last = _QUEUED
            yield last
        if last < _RUNNING and self.record.started_at:
            last = _RUNNING
            yield last
        if self._now not in (last, _ENDED):
            yield self._now

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

    def _images(self, position: ReaderPosition) -> Iterator[tuple[int, ImageEvent]]:
        """Give the finished images that the reader does not have, each with its bit."""
        labels = self.record.labels
        for index in sorted(self._digests):
            bit = index - self.record.start
            if not position.images >> bit & 1:
                url = self.record.image_url(index)
                yield (
                    bit,
                    ImageEvent(
                        index=index,
                        url=url,
                        sha256=self._digests[index],
                        label=labels[bit],
                    ),
                )
