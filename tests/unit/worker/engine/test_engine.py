"""The engine against the plain loop, one event after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.diffusion.plans import Plan, compile_plan
from models.diffusion.sampling import sample, to_bytes
from tests.support.engines import PLANS, SECONDS, drain, engine, plain, plain_x_0_hat, request
from tests.support.networks import SCHEDULE, SHAPE, LatePool, gaussian_eps, one_by_one, random_unet
from worker.engine import step
from worker.engine.chain import ChainRequest
from worker.engine.cuda_graphs import Recorder
from worker.engine.engine import Engine
from worker.engine.pool import Pool


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_cpu_may_be_named_with_its_number(device: str):
    e = Engine(Pool(gaussian_eps, SHAPE, 2, torch.device(device)), {1: 1.0})
    e.submit([request("a")])
    assert torch.equal(drain(e)["a"], plain(request("a")))


def test_new_chains_are_drawn_some_at_a_time_and_are_the_same():
    """Drawing a shard of large images at once would take more memory than the pool."""
    chains = torch.tensor([[5, 0, 7, 2, 1, 3, 6], [9] * 7, range(7)])
    at_once, by_threes = torch.zeros(2, 8, *SHAPE)
    step.start(chains, at_once, torch.zeros(8, *SHAPE), drawn_at_once=1 << 20)
    step.start(chains, by_threes, torch.zeros(8, *SHAPE), drawn_at_once=3 * 24)
    assert torch.equal(at_once, by_threes)
    assert at_once.flatten(1).any(1).sum() == 7


@pytest.mark.parametrize("record", [None, one_by_one], ids=["at once", "recorded"])
def test_a_size_that_was_prepared_draws_what_others_draw(record: Recorder | None):
    """A worker prepares each size with a batch of padding alone, and on CUDA records it then."""
    e = engine(record=record)
    e.pool.prepare(2)
    e.submit([request("a")])
    assert torch.equal(drain(e)["a"], plain(request("a")))


def test_the_u_net_in_the_engine_equals_the_plain_loop():
    net = random_unet()
    shape = (1, 8, 8)
    e = Engine(Pool(net, shape, 16, torch.device("cpu")), SECONDS)
    waiting = [
        ChainRequest((p, i), p, plan, 9, i) for p, plan in enumerate(PLANS) for i in range(3)
    ]
    ended: dict[object, Tensor] = {}
    while waiting or len(e):
        e.submit(waiting[:2])
        waiting = waiting[2:]
        ended |= {done.request.chain: done.pixels for done in e.step()}
    assert len(ended) == 12
    for (p, i), pixels in ended.items():
        expected = sample(net, PLANS[p], 9, [i], shape)[0]
        # Both agree to 1e-4 in [-1, 1]. Half a grey level is 4e-3, so only a value at the edge of
        # two levels may differ, by one level.
        close = (pixels.int() - to_bytes(expected).int()).abs()
        at_edge = (((expected + 1) * 127.5) % 1 - 0.5).abs() < 127.5e-4
        assert bool(((close == 0) | ((close == 1) & at_edge)).all())


def test_a_chain_joins_the_running_batch_at_the_next_step():
    e = engine()
    e.submit([request("long", compile_plan(SCHEDULE, 50))])
    for _ in range(10):
        e.step()
    e.submit([request("short", PLANS[0])])
    assert [done.request.chain for done in e.step()] == ["short"]
    assert e.rows_done("long") == 11


def test_an_image_on_its_way_keeps_its_name_and_not_its_slot():
    e = engine(capacity=1, pool=LatePool)
    e.submit([request("a", PLANS[0])])
    assert e.step() == []
    assert (len(e), e.room, e.rows_done("a")) == (1, 1, 1)
    with pytest.raises(ValueError, match="a name of its own"):
        e.submit([request("a")])
    e.submit([request("b", seed=6)])
    assert torch.equal(e.step()[0].pixels, plain(request("a", PLANS[0])))


def test_a_step_of_no_chain_waits_for_the_images_on_their_way():
    e = engine(pool=LatePool)
    e.submit([request("a", PLANS[0])])
    assert e.step() == []
    assert [done.request.chain for done in e.step(only=["a"])] == ["a"]
    assert len(e) == 0


def test_an_image_on_its_way_is_dropped_when_it_is_cancelled():
    e = engine(pool=LatePool)
    e.submit([request(name, PLANS[0], index=i) for i, name in enumerate("ab")])
    e.step()
    e.cancel("a")
    assert [done.request.chain for done in e.settle()] == ["b"]
    assert len(e) == 0


@pytest.mark.parametrize("pool", [Pool, LatePool])
@pytest.mark.parametrize("plan", PLANS[1:], ids=["ddpm", "ddim", "dpmpp_2m"])
def test_a_preview_is_x_0_hat_after_the_last_step(plan: Plan, pool: type[Pool]):
    e = engine(pool=pool)
    e.submit([request(i, plan, index=i) for i in range(3)])
    assert e.preview(range(3)) == [], "nobody has taken a step"
    for row in range(1, len(plan)):
        e.step()
        previews = e.preview([2, "unknown", 0])
        assert [(p.request.chain, p.row) for p in previews] == [(2, row), (0, row)]
        for p in previews:
            assert torch.equal(p.x_0_hat(), plain_x_0_hat(p.request, row))
    e.step()
    assert e.preview(range(3)) == [], "they have left"
    for i, pixels in drain(e).items():
        assert torch.equal(pixels, plain(request(i, plan, index=i))), "previews changed the image"


def test_a_restored_chain_has_a_preview_after_its_next_step():
    """The snapshot of a plan that does not need x_0_hat has none."""
    before = engine()
    after = engine()
    before.submit([request("a")])
    before.step()
    after.restore(before.snapshot(["a"]))
    assert after.preview(["a"]) == []
    after.step()
    assert [p.row for p in after.preview(["a"])] == [2]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_output_that_is_not_finite_for_one_chain_leaves_its_neighbours_alone(
    poison: float,
):
    def poisoned(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        out[x[:, 0, 0, 0] == marked, 0, 0, 0] = poison
        return out

    marked = sample(gaussian_eps, PLANS[1], 5, [1], SHAPE)[0, 0, 0, 0]
    e = engine(poisoned)
    e.submit([request(i, index=i) for i in range(4)])
    marked = e.snapshot([1])[0].x[0, 0, 0]
    out = drain(e)
    assert out.pop(1) is None
    assert all(torch.equal(pixels, plain(request(i, index=i))) for i, pixels in out.items())


def test_more_chains_than_places_are_refused_whole():
    e = engine(capacity=2)
    with pytest.raises(ValueError, match="2 free places"):
        e.submit([request(i) for i in range(3)])
    assert e.room == 2


def test_a_name_in_use_is_refused():
    e = engine()
    e.submit([request("a")])
    with pytest.raises(ValueError, match="a name of its own"):
        e.submit([request("a")])


def test_a_batch_is_padded_to_a_batch_size_and_the_padding_stays_at_zero():
    sizes: list[int] = []

    def counting(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return gaussian_eps(x, t)

    e = engine(counting)
    e.submit([request(i, index=i) for i in range(5)])
    drain(e)
    assert set(sizes) == {8}
    assert not e.pool.x[e.pool.dummy].any()
    assert e.image_steps == 5 * 7


@pytest.mark.parametrize("network", [gaussian_eps, lambda x, t: torch.full_like(x, 1e30)])
def test_pixels_are_always_within_bounds(network: Callable[[Tensor, Tensor], Tensor]):
    e = engine(network)
    e.submit([request(i, index=i) for i in range(4)])
    assert all(pixels is not None and pixels.dtype == torch.uint8 for pixels in drain(e).values())


def test_a_step_may_be_for_some_chains_only_and_no_more_of_them_than_fit():
    e = engine(batch_sizes=(2, 4))
    e.submit([request(name) for name in range(9)])
    e.step(only=range(3, 9))
    assert [e.rows_done(name) for name in range(9)] == [0, 0, 0, 1, 1, 1, 1, 0, 0]


def test_an_engine_is_interactive_until_its_last_interactive_image_is_out():
    e = engine(pool=LatePool)
    bulk = replace(request("bulk", compile_plan(SCHEDULE, 9)), interactive=False)
    e.submit([bulk, request("interactive", compile_plan(SCHEDULE, 2))])
    seen = []
    while len(e):
        seen.append((e.is_interactive, [done.request.chain for done in e.step()]))
    out = next(step for step, (_, chains) in enumerate(seen) if "interactive" in chains)
    assert out > 1, "later than its last step"
    assert [interactive for interactive, _ in seen] == [step <= out for step in range(len(seen))]


def test_a_chain_that_is_dropped_before_its_first_step_leaves_its_slot_clean():
    e = engine(capacity=1)
    e.submit([request("dropped", seed=1)])
    e.cancel(["dropped"])
    kept = request("kept", seed=2)
    e.submit([kept])
    assert torch.equal(drain(e)["kept"], plain(kept))


def test_chains_are_copied_as_noise_before_their_first_step():
    e = engine()
    requests = [request(name, seed=name) for name in range(3)]
    e.submit(requests)
    other = engine()
    other.restore(e.snapshot(range(3)))
    images = drain(other)
    assert all(torch.equal(images[r.chain], plain(r)) for r in requests)
