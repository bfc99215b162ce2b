"""Ctrl-C and SIGTERM, noticed by work that then ends in good order."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """True once SIGINT or SIGTERM came.

    A second one ends the program at once, with the state of the last save. When the block ends, the
    signals do again what they did before it.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = {
            number: signal.signal(number, self._request)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self.requested

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
