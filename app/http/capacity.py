"""How many connections a process holds, and which one gives way when they are too many."""

from __future__ import annotations

import logging
import resource
import time
from typing import Protocol

from worker.logs import event

log = logging.getLogger(__name__)
# For Redis, webhooks, files and the listening sockets.
_RESERVED_DESCRIPTORS = 256
# A larger limit costs memory in some programs that the process may start.
_MOST_DESCRIPTORS = 65_536
_COMPLAIN_EVERY_S = 60.0


class Waiting(Protocol):
    """A connection on which no request is being answered."""

    def give_way(self) -> None:
        """Close at once."""


class Capacity:
    """Bounds the open connections of a process below its file descriptors.

    Where there are more, the one that has waited longest for a request of its client is closed.
    A client that only holds connections open therefore keeps nobody out.
    """

    def __init__(self, most: int) -> None:
        """Take how many connections may be open."""
        self.most = most
        self._open = 0
        # Ordered: the one that has waited longest comes first.
        self._waiting: dict[Waiting, None] = {}
        self._complain_at = 0.0

    def admit(self, connection: Waiting) -> bool:
        """Count a new connection in; False if all others are busy, and it has to go."""
        self._open += 1
        if self._open > self.most:
            self._complain()
            if not self._waiting:
                return False
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.give_way()
        self._waiting[connection] = None
        return True

    def waits(self, connection: Waiting) -> None:
        """Note that nothing is being answered on the connection from now on."""
        self.is_busy(connection)
        self._waiting[connection] = None

    def is_busy(self, connection: Waiting) -> None:
        """Note that a request is being answered on the connection, so that it stays."""
        self._waiting.pop(connection, None)

    def leave(self, connection: Waiting) -> None:
        """Count out a connection that is closed."""
        self._open -= 1
        self._waiting.pop(connection, None)

    def _complain(self) -> None:
        now = time.monotonic()
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAIN_EVERY_S
            log.warning(
                "all %d connections are taken, so those that wait longest for a request are "
                "closed; raise DDPM_MAX_CONNECTIONS and the limit of open files (ulimit -n), "
                "or run more API processes",
                self.most,
                extra=event("connections.full", most=self.most),
            )


def below_descriptors(most: int) -> int:
    """Raise the soft limit of open files, and return how many connections fit below it.

    Args:
        most: Connections that are wanted.

    Returns:
        `most`, or fewer where the limit leaves room for fewer. The log then says so.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_MOST_DESCRIPTORS, most + _RESERVED_DESCRIPTORS)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fit = max(1, min(most, soft - _RESERVED_DESCRIPTORS))
    if fit < most:
        log.warning(
            "holds at most %d connections instead of %d, as the process may open %d files; "
            "raise the limit (ulimit -Hn) or lower DDPM_MAX_CONNECTIONS",
            fit,
            most,
            soft,
            extra=event("connections.bounded", most=fit),
        )
    return fit
