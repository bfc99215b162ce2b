"""What tests ask of the fused kernel in a process of its own: Triton reads at its import whether it is to interpret."""

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
    """Of a step of five chains and one of padding: how many values of x, and of x_0_hat, are not those of `rows.advance`.

    `outputs` is what the network said of one value; chances are fixed.
    """
    from worker.backends.cuda import step_kernel

    random, torch_random = np.random.default_rng(0), torch.Generator().manual_seed(0)
    chains = [
        (
            slot,
            random.integers(1000),
            random.integers(2**53),
            random.integers(2**32),
            random.integers(2**32),
            *_row(random),
        )
        for slot in (3, 0, 8, 5, 7)
    ]
    padding = (SLOTS, *[0] * (step.WIDTH - 1))
    columns = torch.from_numpy(np.array([*chains, padding], np.float64).T.copy())
    x, x_0_hat = (torch.randn(SLOTS + 1, *shape, generator=torch_random) for _ in range(2))
    out = torch.randn(6, *shape, generator=torch_random)
    out[1, 0, 0, 0] = outputs
    pools = [(x.clone(), x_0_hat.clone()) for _ in range(2)]
    for advance, (ours, hats) in zip((step_kernel.advance, step.advance), pools, strict=True):
        there = [tensor.to(device) for tensor in (columns, ours, hats, out)]
        advance(*there)
        ours.copy_(there[1]), hats.copy_(there[2])
    assert not torch.equal(pools[0][0][8], x[8])  # what was to change has changed
    assert torch.equal(pools[0][0][1], x[1])  # and nothing else
    return [
        int((a.view(torch.int32) != b.view(torch.int32)).sum()) for a, b in zip(*pools, strict=True)
    ]


def _row(random: np.random.Generator) -> list[float]:
    row = dict(zip(COLUMNS, random.normal(size=len(COLUMNS)), strict=True))
    return list((row | {"bound": abs(row["bound"])}).values())


def machine_code(capability: int) -> bytes:
    """The kernel for GPUs of that compute capability times ten (90: an H100)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worker.backends.cuda import step_kernel

    types = dict.fromkeys(("x", "x_0_hat", "out"), "*fp32") | {
        "columns": "*fp64",
        "chains": "i32",
        "size": "i32",
    }
    source = ASTSource(
        step_kernel._advance, types | {"VALUES": "constexpr"}, constexprs={"VALUES": 256}
    )
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False}
    )
    assert "fma.rn.f32" not in made.asm["ptx"]
    return made.asm["cubin"]
