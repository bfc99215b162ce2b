"""Standard normal noise as a pure function of (seed, image index, draw): Philox4x32-10 and Box-Muller.

A sequential generator would make a chain's noise depend on who drew before it. Here every value is computed from its own
address, so a chain can be batched with anybody, parked, moved and resumed. Draw 0 is x_T, draw k the noise of row k - 1.
Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def normal(seed: Tensor, index: Tensor, draw: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """seed (B,) in 0..2^53-1, index (B,) and draw (B,) in 0..2^32-1, all int64 -> N(0, I), float32 of (B, *shape)."""
    size = math.prod(shape)
    lanes = -(-size // 4)
    lane = torch.arange(lanes, device=seed.device).expand(len(seed), -1)
    column = [c[:, None].expand_as(lane) for c in (draw, index)]
    words = philox((lane, *column, torch.zeros_like(lane)), (seed[:, None] & _WORD, seed[:, None] >> 32))
    values = torch.cat([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=1)
    return values[:, :size].reshape(len(seed), *shape)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words of counter and two of key to four random words, each 0..2^32-1 in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, and the mask drops the sign that >> drags in: high and low words come out right
        low0, low1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((low1 >> 32) & _WORD) ^ c1 ^ k0, ((low0 >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = low1 & _WORD, low0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two words to two normal values. In float64, so that CPU and CUDA agree to one unit in the last place of float32."""
    radius = (-2 * ((first.double() + 0.5) * 2.0**-32).log()).sqrt()
    angle = (second.double() + 0.5) * (2 * math.pi * 2.0**-32)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()
