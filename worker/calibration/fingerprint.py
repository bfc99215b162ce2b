"""A worker's fingerprint for a model: the hash of the bits of a few chains.

Bits depend on the CPU's instructions, on the kind of GPU, on the precision and on whose kernels
compute, and nobody can list all of that. So the worker draws something, and hashes it.
"""

from __future__ import annotations

import hashlib

import torch

from worker.engine.pool import Pool, columns_of

# p, q, bound, a, b, d, s, ratio, most, spread, own: every part of a step takes part
ROW = (1.0, -0.5, 1.0, 0.5, 0.5, 0.1, 0.1, 0.9, 2.0, 0.1, 0.1)
# So few that a start waits for one small batch only: other kernels change nearly every value.
_CHAINS = 4
_DIGITS = 12


def chains_of(pool: Pool, T: int, count: int) -> list[tuple[float, ...]]:
    """Describe chains from the first timestep to the last, of all classes if there are any.

    Args:
        pool: What steps them. If it holds fewer, the last ones are left out.
        T: The timesteps of its network.
        count: How many there are.

    Returns:
        Columns of `columns_of`, with the numbers of the pool's slots from 0 on.
    """
    most = max(1, pool.class_rows - 1)
    return [
        (
            i,
            i * (T - 1) // (count - 1),
            0,
            i,
            1,
            *ROW,
            *((i * most // (count - 1), 1.0) if pool.is_conditional else ()),
        )
        for i in range(min(count, pool.capacity))
    ]


@torch.inference_mode()
def fingerprint_of(pool: Pool, T: int, size: int) -> str:
    """Step the same four chains as every worker, and hash x and x_0_hat.

    The seeds, the timesteps and the number of chains are always the same. So two workers have one
    fingerprint of a model exactly if they get the same bits of these chains. The batch sizes and
    threads that calibration chose agree to the bit, so none of them changes it.

    The pool's chains are overwritten.

    Args:
        pool: What computes. It has room for four chains, or has all that it holds stepped.
        T: The timesteps of its network.
        size: The batch size.

    Returns:
        12 hexadecimal digits.

    Raises:
        torch.OutOfMemoryError: The batch size does not fit.
    """
    slots = range(min(_CHAINS, pool.capacity))
    pool.start(slots, [0] * len(slots), slots)
    chains = chains_of(pool, T, _CHAINS)
    for first in range(0, len(chains), size):
        pool.step(columns_of(chains[first : first + size], size, pool.dummy, pool.width))
    bits = torch.stack([pool.read(slots), pool.read_x_0_hat(slots)])
    return hashlib.sha256(bits.numpy().tobytes()).hexdigest()[:_DIGITS]
