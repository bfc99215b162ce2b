"""What every system under comparison does, in its own way."""

from __future__ import annotations

from typing import Protocol


class Draw(Protocol):
    def __call__(self, count: int, steps: int, seed: int) -> list[bytes]:
        """Pictures, when all are there; many threads may call at once."""
