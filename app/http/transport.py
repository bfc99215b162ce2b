"""A transport that closes without taking its last answer away from the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# What a client may still send after the answer, and how long.
_DISCARDED_BYTES = 1 << 20
_LINGERS_S = 2.0


class LingeringTransport(asyncio.Transport):
    """Closes in two steps where the client still sends (RFC 9112, section 9.6).

    The kernel resets a connection that is closed with bytes unread, and a client whose connection
    is reset may never see the answer that was sent to it. So the answer is ended first. What
    arrives afterwards is dropped, for a short while.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        still_sends: Callable[[], bool],
        may_read: Callable[[], bool],
        unread_for_s: float,
    ) -> None:
        """Take the transport below.

        Args:
            transport: What really closes.
            still_sends: Whether the client has not sent all of its request.
            may_read: Whether there is room for what is read, now that reading is to go on.
            unread_for_s: Longest that a closing connection waits for a client that does not read.
        """
        super().__init__()
        self._below = transport
        self._still_sends = still_sends
        self._may_read = may_read
        self._unread_for_s = unread_for_s
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._deadline: asyncio.TimerHandle | None = None
        self._discarded = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, unless the answer has been ended."""
        if not self._closing:
            self._below.write(data)

    def pause_reading(self) -> None:
        """Leave what the client sends in the kernel."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Take what the client sends, where there is room for it."""
        if self._may_read():
            self._below.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the connection, such as its `peername`."""
        return self._below.get_extra_info(name, default)

    def abort(self) -> None:
        """Close at once, and drop what is not sent."""
        self._below.abort()

    def is_closing(self) -> bool:
        """Return whether the answer has been ended, or the connection closed."""
        return self._closing or self._below.is_closing()

    def close(self) -> None:
        """End the answer, and close as soon as the client has seen it."""
        if self.is_closing():
            return
        self._closing = True
        if self._still_sends():
            self._below.write_eof()
            self._below.resume_reading()
            self._deadline = self._loop.call_later(_LINGERS_S, self._close_below)
        else:
            self._close_below()

    def discard(self, size_bytes: int) -> None:
        """Count bytes that arrived after the answer, and close when they are too many."""
        self._discarded += size_bytes
        if self._discarded > _DISCARDED_BYTES and not self._below.is_closing():
            self._close_below()

    def lost(self) -> None:
        """Stop the clock of a connection that is gone."""
        self._closing = True
        if self._deadline is not None:
            self._deadline.cancel()

    def _close_below(self) -> None:
        """Close when all is sent, or when the client has not read it for long."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._below.close()
        self._deadline = self._loop.call_later(self._unread_for_s, self._below.abort)
