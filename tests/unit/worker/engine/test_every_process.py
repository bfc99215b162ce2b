"""Thresholds and learned variances in the engine: an image's bits do not depend on its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.diffusion.options import Clipping
from models.diffusion.process import Process
from models.diffusion.sampling import sample
from models.diffusion.schedule import Schedule
from tests.support.networks import one_by_one
from worker.engine.chain import ChainRequest
from worker.engine.engine import Engine
from worker.engine.pool import Pool

SHAPE = (3, 5, 7)
CPU = torch.device("cpu")
COSINE = Schedule.cosine(1000)
ZERO_SNR = Schedule.scaled_linear(1000, 0.00085, 0.012).with_zero_terminal_snr()
PROCESSES = {
    "threshold": Process(COSINE, clipping=Clipping(math.inf, 0.9, 3.0)),
    "learned range": Process(COSINE, learned_variance="learned_range"),
    "learned": Process(COSINE, learned_variance="learned"),
    "both": Process(
        ZERO_SNR,
        "v_prediction",
        Clipping(math.inf, 0.995, 1.5),
        learned_variance="learned_range",
    ),
    "unclipped": Process(ZERO_SNR, "sample", Clipping(math.inf)),
    "wide": Process(COSINE, clipping=Clipping(2.0)),
}


def network(process: Process):
    """Make an elementwise network, whose images leave [-1, 1] here and there."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        when = t[:, None, None, None] / 100
        out = 0.9 * x + 0.3 * torch.round(8 * x + when) / 8
        if process.learned_variance is None:
            return out
        v = (x - x.round()).abs()
        return torch.cat([out, v if process.learned_variance == "learned" else 4 * v - 1], dim=1)

    return net


def run(process: Process, requests: Sequence[ChainRequest], size: int, record=None) -> list[Tensor]:
    pool = Pool(
        network(process),
        SHAPE,
        8,
        CPU,
        record,
        dynamic=process.clipping.is_dynamic,
        learned=process.learned_variance is not None,
    )
    e = Engine(pool, {size: 1.0})
    e.submit(requests)
    images: dict[object, Tensor] = {}
    while len(e):
        for done in e.step():
            assert done.pixels is not None
            images[done.request.chain] = done.pixels
    return [images[request.chain] for request in requests]


@pytest.mark.parametrize("name", PROCESSES)
def test_an_image_has_the_same_bits_in_every_batch(name):
    process = PROCESSES[name]
    learns = process.learned_variance is not None
    plans = [
        process.plan(12, variance="learned" if learns else "fixed_small"),
        process.plan(9, variance="fixed_large"),
        process.plan(7, "ddim", eta=0.5),
        process.plan(8, "dpmpp_2m"),
    ]
    requests = [ChainRequest(i, "job", plan, 3, i) for i, plan in enumerate(plans)]
    alone = [run(process, [request], 1)[0] for request in requests]
    for size in (2, 3, 4):
        together = run(process, requests, size)
        assert all(map(torch.equal, together, alone)), size
    recorded = run(process, requests, 4, one_by_one)
    assert all(map(torch.equal, recorded, alone))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_engine_samples_what_the_plain_loop_does(name):
    process = PROCESSES[name]
    learns = process.learned_variance is not None
    plan = process.plan(12, variance="learned" if learns else "fixed_small")
    requests = [ChainRequest(i, "job", plan, 3, i) for i in range(4)]
    images = torch.stack(run(process, requests, 4))
    expected = sample(network(process), plan, 3, range(4), SHAPE)
    grey = (expected.clamp(-1, 1) + 1) * 127.5
    assert (images - grey).abs().max() <= 0.51
    assert len(images.unique()) > 50


def test_a_network_that_is_not_finite_is_noticed_through_a_threshold():
    process = PROCESSES["threshold"]
    pool = Pool(lambda x, t: x * math.nan, SHAPE, 2, CPU, dynamic=True)
    e = Engine(pool, {1: 1.0})
    e.submit([ChainRequest("a", "job", process.plan(2), 0, 0)])
    (done,) = [done for _ in range(3) for done in e.step()]
    assert done.pixels is None
