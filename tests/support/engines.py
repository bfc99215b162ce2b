"""Small engines on networks with a closed form, and the plain loop's images for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.diffusion.plans import Plan, compile_plan
from models.diffusion.sampling import Network, chain, sample, to_bytes
from tests.support.networks import SCHEDULE, SHAPE, gaussian_eps
from worker.engine.chain import ChainRequest
from worker.engine.cuda_graphs import Recorder
from worker.engine.engine import Engine
from worker.engine.pool import Pool

PLANS = [
    compile_plan(SCHEDULE, 1, "ddpm"),
    compile_plan(SCHEDULE, 7, "ddpm", variance="fixed_large"),
    compile_plan(SCHEDULE, 5, "ddim", eta=0.5),
    compile_plan(SCHEDULE, 6, "dpmpp_2m"),
]


# a step of each batch size
SECONDS = {2: 1.0, 4: 1.5, 8: 2.0}


def engine(
    network: Network = gaussian_eps,
    capacity: int = 12,
    batch_sizes: Sequence[int] = (2, 4, 8),
    record: Recorder | None = None,
    pool: type[Pool] = Pool,
) -> Engine:
    return Engine(
        pool(network, SHAPE, capacity, torch.device("cpu"), record),
        {size: SECONDS[size] for size in batch_sizes},
    )


def request(
    name: object, plan: Plan = PLANS[1], seed: int = 5, index: int = 0, **options: object
) -> ChainRequest:
    return ChainRequest(name, name, plan, seed, index, **options)


def drain(e: Engine) -> dict[object, Tensor | None]:
    out: dict[object, Tensor | None] = {}
    while len(e):
        out |= {done.request.chain: done.pixels for done in e.step()}
    return out


def plain(r: ChainRequest, network: Network = gaussian_eps) -> Tensor:
    return to_bytes(sample(network, r.plan, r.seed, [r.index], SHAPE))[0]


def plain_x_0_hat(r: ChainRequest, row: int) -> Tensor:
    """x_0_hat when so many rows are done."""
    return list(chain(gaussian_eps, r.plan, r.seed, [r.index], SHAPE))[row - 1][1][0]
