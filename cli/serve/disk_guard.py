"""Keeps the embedded Valkey from filling its disk, where `appendfsync always` would end it.

A server that cannot write to its disk exits, and everything is answered 503. So while little is
left, the guard takes the server's memory away: it refuses jobs, which the API answers with 507, and
workers keep what they have. What is there can still be read and deleted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import say

if TYPE_CHECKING:
    from redis import Redis

_EVERY_S = 1.0
# What is refused from there on is small, so the reserve lasts for days.
RESERVE_BYTES = 256 << 20
_RESERVE_SHARE = 0.1
# Above the reserve by so much, the disk is free again: else the guard would go to and fro.
_AGAIN = 1.25
# Deleted jobs leave the file only when the server writes it anew.
_REWRITE_EVERY_ROUNDS = 30


class DiskGuard:
    """Watches the disk of one server."""

    def __init__(
        self,
        redis: Redis,
        folder: Path,
        maxmemory: str,
        free: Callable[[Path], tuple[int, int]] | None = None,
    ) -> None:
        """Make a guard that has looked at nothing yet.

        Args:
            redis: The server.
            folder: Folder of its append-only file.
            maxmemory: What the server may have while there is room on the disk.
            free: Returns the bytes of the disk that are free, and all of them.
        """
        self._redis = redis
        self._folder = folder
        self._maxmemory = maxmemory
        self._free = free or _free
        self._rounds_low = 0

    def run_once(self) -> None:
        """Look at the disk, and take the server's memory or give it back.

        Raises:
            RedisError: The server does not answer.
        """
        free, size = self._free(self._folder)
        reserve = min(RESERVE_BYTES, int(size * _RESERVE_SHARE))
        if free >= reserve * (_AGAIN if self._rounds_low else 1):
            self._give_back(free)
        else:
            self._take(free, reserve)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look once a second while the block runs."""
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(over,), name="disk guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self, over: threading.Event) -> None:
        from redis import RedisError

        with closing(self._redis):
            while not over.wait(_EVERY_S):
                # Not started yet, or started again; the supervisor says that.
                with suppress(RedisError, OSError):
                    self.run_once()

    def _take(self, free: int, reserve: int) -> None:
        if not self._rounds_low:
            say(
                f"the disk of {self._folder} has {free >> 20} MB left, and {reserve >> 20} MB are "
                "kept in reserve: jobs are refused (507) until there is room; free some, or delete "
                "jobs"
            )
        # Every time: the server may have been started again.
        self._redis.config_set("maxmemory", 1)
        if self._rounds_low % _REWRITE_EVERY_ROUNDS == 0 and self._has_room_to_rewrite(free):
            self._redis.bgrewriteaof()
        self._rounds_low += 1

    def _give_back(self, free: int) -> None:
        if self._rounds_low:
            self._redis.config_set("maxmemory", self._maxmemory)
            say(f"the disk of {self._folder} has {free >> 20} MB left: jobs are accepted again")
        self._rounds_low = 0

    def _has_room_to_rewrite(self, free: int) -> bool:
        memory = int(self._redis.info("memory")["used_memory_dataset"])
        rewriting = self._redis.info("persistence")["aof_rewrite_in_progress"]
        return memory < free and not rewriting


def _free(folder: Path) -> tuple[int, int]:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
