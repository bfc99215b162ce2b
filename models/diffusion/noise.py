"""Standard normal noise as a pure function of (seed, image index, draw): Philox4x32-10 and Box-Muller.

A sequential generator would make a chain's noise depend on who drew before it. Here every value is computed from its own
address, so a chain can be batched with anybody, parked, moved and resumed. Draw 0 is x_T, draw k the noise of row k - 1.
Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def normal(seed: Tensor, index: Tensor, draw: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """seed (B,) in 0..2^53-1, index (B,) and draw (B,) in 0..2^32-1, all int64 -> N(0, I), float32 of (B, *shape)."""
    size = math.prod(shape)
    lane = torch.arange(-(-size // 4), device=seed.device).expand(len(seed), -1)
    index, draw = index[:, None].expand_as(lane), draw[:, None].expand_as(lane)
    counter = torch.stack([torch.stack([lane, index]), torch.stack([draw, torch.zeros_like(draw)])])
    return _box_muller(*philox(counter, torch.stack([seed & _WORD, seed >> 32])))[:, :size].reshape(
        -1, *shape
    )


def philox(
    counter: Tensor, key: Tensor, rounds: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """Philox4x32-10. counter (2, 2, B, N) holds words 0 and 2, then 1 and 3; key (2, B) -> random words, laid out as the counter.

    Words are 0..2^32-1, all int64.
    """
    multipliers, weyl_by_round = _constants(key.device)
    keys = ((key + weyl_by_round) & _WORD)[..., None]
    rounds = rounds or (rounds_in_numpy if key.device.type == "cpu" else rounds_in_torch)
    return rounds(counter, keys, multipliers)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Multipliers (2, 1, 1), and what is added to the key in each round (10, 2, 1). Copied to a GPU once: a CUDA graph cannot."""
    weyl = torch.tensor(_WEYL)[:, None] * torch.arange(_ROUNDS)[:, None, None]
    return torch.tensor(_MULTIPLIERS)[:, None, None].to(device), weyl.to(device)


def rounds_in_torch(counter: Tensor, keys: Tensor, multipliers: Tensor) -> Tensor:
    """int64 products wrap, and the mask drops the sign that >> drags in: high and low words come out right."""
    even, odd = counter
    for key in keys:
        product = even * multipliers
        even = ((product >> 32) & _WORD).flip(0) ^ odd ^ key
        odd = (product & _WORD).flip(0)
    return torch.stack([even, odd])


def rounds_in_numpy(counter: Tensor, keys: Tensor, multipliers: Tensor) -> Tensor:
    """The same. Of many operations on little data NumPy does each in a third of torch's time."""
    words, keys_, multipliers_ = (
        tensor.numpy().view(np.uint64) for tensor in (counter, keys, multipliers)
    )
    even, odd = words.copy()
    high, low = np.empty_like(even), np.empty_like(even)
    for key in keys_:
        np.multiply(even, multipliers_, out=even)
        np.right_shift(even, 32, out=high)
        np.bitwise_and(even, _WORD, out=low)
        np.bitwise_xor(high[::-1], odd, out=even)
        np.bitwise_xor(even, key, out=even)
        odd, low = low[::-1], odd[::-1]
    return torch.from_numpy(np.stack([even, odd]).view(np.int64))


def _box_muller(even: Tensor, odd: Tensor) -> Tensor:
    """Pairs of words to pairs of normal values: (2, B, N) twice -> (B, 4 N).

    In float64, so that CPU and CUDA agree to one unit in the last place of float32.
    """
    radius = even.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = odd.double().add_(0.5).mul_(2 * math.pi * 2.0**-32)
    pairs = torch.stack(
        [radius * angle.cos(), radius * angle.sin()], dim=1
    )  # word 0's cosines, its sines, then word 2's
    return pairs.permute(2, 0, 1, 3).flatten(1).float()
