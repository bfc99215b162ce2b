"""A reader of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Event:
    """An event as a browser would hand it on; `id` is None where it has none."""

    name: str
    id: str | None
    data: dict[str, Any]


class StreamReader:
    """An open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.headers = response.headers
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        """Give events as they come, without comments and whatever else bears no data."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                yield Event(fields["event"], fields.get("id"), json.loads(fields["data"]))
                fields = {}

    def until(self, name: str, **data: Any) -> list[Event]:
        """Read events up to the first of this name that holds this data."""
        events = []
        for event in self:
            events.append(event)
            if event.name == name and data.items() <= event.data.items():
                return events
        raise AssertionError(f"the stream ended before {name} {data}: {events}")


@contextmanager
def read(
    http: httpx.Client, job: str, after: str | None = None, previews: Sequence[int] = ()
) -> Iterator[StreamReader]:
    """Stream the events of a job, from the beginning or behind the one with the id `after`."""
    headers = {"Last-Event-ID": after} if after else {}
    with http.stream(
        "GET", f"/v1/jobs/{job}/events", headers=headers, params={"preview": previews}
    ) as response:
        assert response.status_code == 200, response.read()
        yield StreamReader(response)


def states_and_images(events: list[Event]) -> list[Any]:
    """List states and indices of images in order, the only events that all readers get alike."""
    return [
        event.data.get("state", event.data.get("index"))
        for event in events
        if event.name in ("state", "image")
    ]
