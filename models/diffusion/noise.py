"""Standard normal noise as a pure function of seed, image index and draw.

Philox4x32-10 makes random words, and Box-Muller makes normal values of them.

A sequential generator would make a chain's noise depend on what was drawn before. Here every value
is computed from its own address, so a chain can be batched with any others, parked, moved and
resumed. Draw 0 is x_T, and draw k is the noise of row k - 1.

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
    """Draw from N(0, I).

    Args:
        seed: int64 (B,) in 0..2^53-1.
        index: int64 (B,) in 0..2^32-1.
        draw: int64 (B,) in 0..2^32-1.
        shape: An image's (C, H, W).

    Returns:
        float32 (B, C, H, W).
    """
    size = math.prod(shape)
    lane = torch.arange(-(-size // 4), device=seed.device).expand(len(seed), -1)
    index = index[:, None].expand_as(lane)
    draw = draw[:, None].expand_as(lane)
    counter = torch.stack([torch.stack([lane, index]), torch.stack([draw, torch.zeros_like(draw)])])
    key = torch.stack([seed & _WORD, seed >> 32])
    return _box_muller(*philox(counter, key))[:, :size].reshape(-1, *shape)


def philox(
    counter: Tensor, key: Tensor, rounds: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
) -> Tensor:
    """Compute Philox4x32-10. Words are int64 in 0..2^32-1.

    Args:
        counter: (2, 2, B, N), words 0 and 2, then words 1 and 3.
        key: (2, B).
        rounds: What computes the rounds. None: the fastest on the key's device.

    Returns:
        Random words, laid out as the counter.
    """
    multipliers, weyl_by_round = _constants(key.device)
    keys = ((key + weyl_by_round) & _WORD)[..., None]
    rounds = rounds or (rounds_in_numpy if key.device.type == "cpu" else rounds_in_torch)
    return rounds(counter, keys, multipliers)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the multipliers (2, 1, 1), and what each round adds to the key (10, 2, 1).

    They are copied to a GPU once, as a CUDA graph cannot copy them.
    """
    weyl = torch.tensor(_WEYL)[:, None] * torch.arange(_ROUNDS)[:, None, None]
    return torch.tensor(_MULTIPLIERS)[:, None, None].to(device), weyl.to(device)


def rounds_in_torch(counter: Tensor, keys: Tensor, multipliers: Tensor) -> Tensor:
    """Compute the rounds with torch.

    int64 products wrap, and the mask drops the sign that >> brings in. So high and low words are
    right.
    """
    even, odd = counter
    for key in keys:
        product = even * multipliers
        even = ((product >> 32) & _WORD).flip(0) ^ odd ^ key
        odd = (product & _WORD).flip(0)
    return torch.stack([even, odd])


def rounds_in_numpy(counter: Tensor, keys: Tensor, multipliers: Tensor) -> Tensor:
    """Compute the rounds with NumPy.

    It takes a third of torch's time for each of many operations on little data.
    """
    even, odd = counter.numpy().view(np.uint64).copy()
    factors = multipliers.numpy().view(np.uint64)
    high = np.empty_like(even)
    low = np.empty_like(even)
    for key in keys.numpy().view(np.uint64):
        np.multiply(even, factors, out=even)
        np.right_shift(even, 32, out=high)
        np.bitwise_and(even, _WORD, out=low)
        np.bitwise_xor(high[::-1], odd, out=even)
        np.bitwise_xor(even, key, out=even)
        odd, low = low[::-1], odd[::-1]
    return torch.from_numpy(np.stack([even, odd]).view(np.int64))


def _box_muller(even: Tensor, odd: Tensor) -> Tensor:
    """Turn pairs of words into pairs of normal values: (2, B, N) twice -> (B, 4 N).

    It computes in float64, so that CPU and CUDA agree to one unit in the last place of float32.
    """
    radius = even.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = odd.double().add_(0.5).mul_(2 * math.pi * 2.0**-32)
    # the cosines of word 0, its sines, then those of word 2
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs.permute(2, 0, 1, 3).flatten(1).float()
