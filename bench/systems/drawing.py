"""The function that every system under comparison has in its own way."""

from __future__ import annotations

from typing import Protocol


class Draw(Protocol):
    """A function that draws images."""

    def __call__(self, count: int, steps: int, seed: int) -> list[bytes]:
        """Return the images once all are there. Many threads may call at once."""
