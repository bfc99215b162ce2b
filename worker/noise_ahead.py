"""Noise for the chains in a pool's slots on a CPU, some steps of it at a time."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from models.noise import normal

_STEPS, _CHAIN_VALUES = 16, 1 << 15  # of one chain at most so many steps, and values, are kept
_VALUES = 100_000  # drawn at once
_KEPT = 1 << 26  # in all, unless even one step of each chain is more

Integers = NDArray[np.int64]
_Chain = tuple[int, int, int, int]  # slot, seed, index, draw


class NoiseAhead:
    """Draws what `models.noise.normal` draws, and for later steps too: for a few chains nearly all of its time is calls.

    Noise is a function of its address, so what is kept needs no care: it is used where its address is the one asked for.
    """

    def __init__(self, slots: int, shape: tuple[int, int, int]) -> None:
        self._shape, self._size = shape, math.prod(shape)
        self._depth = max(1, min(_STEPS, _CHAIN_VALUES // self._size, _KEPT // (slots * self._size)))
        self.values = np.zeros((slots, self._depth, *shape), np.float32)  # draw k lies at k modulo the depth
        self._kept = [(0, 0, range(0))] * slots  # seed, index, draws

    def __call__(self, slots: Integers, seed: Integers, index: Integers, draw: Integers) -> NDArray[np.float32]:
        """All (B,); float32 (B, C, H, W)."""
        self.prepare(slots, seed, index, draw)
        return self.values[slots, draw % self._depth]

    def prepare(self, slots: Integers, seed: Integers, index: Integers, draw: Integers) -> None:
        """Have the same in `values`."""
        chains = zip(slots.tolist(), seed.tolist(), index.tolist(), draw.tolist(), strict=True)
        if missing := {chain for chain in chains if not self._has(*chain)}:
            self._draw(missing, max(1, min(self._depth, _VALUES // self._size // len(missing))))

    def _has(self, slot: int, seed: int, index: int, draw: int) -> bool:
        own_seed, own_index, draws = self._kept[slot]
        return own_seed == seed and own_index == index and draw in draws

    def _draw(self, chains: Collection[_Chain], steps: int) -> None:
        addresses = [(slot, seed, index, draw + k) for slot, seed, index, draw in chains for k in range(steps)]
        slots, seed, index, draw = torch.tensor(addresses).T
        self.values[slots, draw % self._depth] = normal(seed, index, draw, self._shape).numpy()
        for slot, own_seed, own_index, first in chains:
            self._kept[slot] = (own_seed, own_index, range(first, first + steps))
