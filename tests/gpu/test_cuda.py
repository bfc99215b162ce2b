"""The same code on a GPU. Skipped, and said so, where there is none."""

from __future__ import annotations

import pytest
import torch

from models import checkpoint
from models.catalog import SHIPPED
from models.noise import normal
from models.plans import compile_plan
from models.sampling import sample, to_bytes
from worker.calibrate import calibrate
from worker.engine import ChainRequest, Engine
from worker.network import TabledNetwork
from worker.pool import Pool

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]
MODEL = SHIPPED / "fashion-mnist-28"
SHAPE = (1, 28, 28)


@pytest.fixture(scope="module")
def network() -> TabledNetwork:
    return TabledNetwork(checkpoint.load(MODEL), torch.device("cuda"))


def test_noise_is_that_of_the_cpu_to_a_millionth():
    address = torch.arange(64)
    here = normal(address, address, address, SHAPE)
    there = normal(address.cuda(), address.cuda(), address.cuda(), SHAPE).cpu()
    assert (here - there).abs().max() <= 1e-6


def test_the_engine_draws_what_the_plain_loop_draws_on_the_cpu(network: TabledNetwork):
    loaded = checkpoint.load(MODEL)
    engine = Engine(Pool(network, SHAPE, 32, torch.device("cuda")), (2, 8))
    plans = [compile_plan(loaded.schedule, 20), compile_plan(loaded.schedule, 10, "dpmpp_2m")]
    engine.submit([ChainRequest((p, i), p, plan, 5, i) for p, plan in enumerate(plans) for i in range(4)])
    pixels = {}
    while len(engine):
        pixels |= {done.request.chain: done.pixels for done in engine.step()}
    for p, plan in enumerate(plans):
        expected = to_bytes(sample(loaded.net, plan, 5, range(4), SHAPE))
        for i in range(4):
            assert (pixels[p, i].int() - expected[i].int()).abs().float().mean() < 1, (
                "kernels differ in the last bits, pictures do not"
            )


def test_an_image_does_not_depend_on_its_batch_mates(network: TabledNetwork):
    plan = compile_plan(checkpoint.load(MODEL).schedule, 20)
    buckets = calibrate(network, SHAPE, 1000, torch.device("cuda")).buckets

    def draw(indices: range) -> dict[int, torch.Tensor]:
        engine = Engine(Pool(network, SHAPE, 64, torch.device("cuda")), buckets)
        engine.submit([ChainRequest(i, 0, plan, 5, i) for i in indices])
        out = {}
        while len(engine):
            out |= {done.request.index: done.pixels for done in engine.step()}
        return out

    together = draw(range(40))
    assert all(torch.equal(draw(range(i, i + 1))[i], together[i]) for i in (0, 7, 39))
