"""Questions that tests ask of the fused kernel, in another process.

Triton decides at its import whether it interprets kernels or compiles them.
"""

from __future__ import annotations

import numpy as np
import torch

from models.diffusion.plans import COLUMNS
from worker.engine import step

SLOTS = 9
CPU = torch.device("cpu")


def differences(
    shape: tuple[int, int, int], outputs: float, device: torch.device = CPU
) -> list[int]:
    """Count the values of x, and of x_0_hat, that differ from those of `worker.engine.step`.

    The step has five chains and one of padding. Random numbers have a fixed seed.

    Args:
        shape: An image's (C, H, W).
        outputs: The network's output for one value.
        device: Where the kernel runs.
    """
    from worker.backends.cuda import step_kernel

    random = np.random.default_rng(0)
    torch_random = torch.Generator().manual_seed(0)
    # of t, seed, index and draw
    limits = (1000, 2**53, 2**32, 2**32)
    chains = [
        (slot, *(random.integers(limit) for limit in limits), *_row(random))
        for slot in (3, 0, 8, 5, 7)
    ]
    padding = (SLOTS, *[0] * (step.WIDTH - 1))
    columns = torch.from_numpy(np.array([*chains, padding], np.float64).T.copy())
    x, x_0_hat = (torch.randn(SLOTS + 1, *shape, generator=torch_random) for _ in range(2))
    out = torch.randn(6, *shape, generator=torch_random)
    out[1, 0, 0, 0] = outputs
    pools = [(x.clone(), x_0_hat.clone()) for _ in range(2)]
    for advance, (ours, hats) in zip((step_kernel.advance, step.advance), pools, strict=True):
        on_device = [tensor.to(device) for tensor in (columns, ours, hats, out)]
        advance(*on_device)
        ours.copy_(on_device[1])
        hats.copy_(on_device[2])
    assert not torch.equal(pools[0][0][8], x[8]), "a chain's slot stayed as it was"
    assert torch.equal(pools[0][0][1], x[1]), "another slot changed"
    bits = [[tensor.view(torch.int32) for tensor in pool] for pool in pools]
    return [int((ours != theirs).sum()) for ours, theirs in zip(*bits, strict=True)]


def _row(random: np.random.Generator) -> list[float]:
    row = dict(zip(COLUMNS, random.normal(size=len(COLUMNS)), strict=True))
    return list((row | {"bound": abs(row["bound"])}).values())


def machine_code(capability: int) -> bytes:
    """Compile the kernel for GPUs of ten times this compute capability (90: an H100)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worker.backends.cuda import step_kernel

    types = dict.fromkeys(("x", "x_0_hat", "out"), "*fp32")
    types |= {"columns": "*fp64", "chains": "i32", "size": "i32", "VALUES": "constexpr"}
    source = ASTSource(step_kernel.advance_kernel, types, constexprs={"VALUES": 256})
    target = GPUTarget("cuda", capability, 32)
    made = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    assert "fma.rn.f32" not in made.asm["ptx"]
    return made.asm["cubin"]
