"""Calibration of networks with a closed form, by a clock that the networks move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.diffusion.sampling import Network
from tests.support.clock import SimulatedClock
from tests.support.networks import SHAPE, gaussian_eps
from worker.calibration.calibrate import Calibration, calibrate, draws_other_bits, is_beaten
from worker.engine.pool import Pool

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pool(network: Network = gaussian_eps, capacity: int = 64) -> Pool:
    return Pool(network, SHAPE, capacity, CPU)


def calibrated(pool: Pool, *sizes: int, **options: object) -> Calibration:
    """Calibrate with a clock by which every step takes a millisecond."""
    return calibrate(pool, 1000, sizes, clock=SimulatedClock(tick_s=0.001), **options)


def with_other_bits(where: Callable[[Tensor], bool], pixels: slice = slice(None)) -> Network:
    """A network whose kernel changes, in the last bit, for some inputs."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        if where(x):
            out[..., pixels] = torch.nextafter(out[..., pixels], torch.tensor(9.0))
        return out

    return network


def test_a_size_whose_bits_differ_is_not_used():
    odd = with_other_bits(lambda x: len(x) == 8)
    assert calibrated(pool(odd), 2, 4, 8, 16).batch_sizes == (2, 4, 16)


def test_a_size_is_dropped_for_one_pixel():
    odd = with_other_bits(lambda x: len(x) == 4, slice(0, 1))
    assert calibrated(pool(odd), 1, 2, 4).batch_sizes == (1, 2)


def test_a_size_is_dropped_for_other_bits_in_its_last_places():
    """A batch has more places than there are chains to compare."""

    def odd(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        out[63:] = torch.nextafter(out[63:], torch.tensor(9.0))
        return out

    assert calibrated(pool(odd), 16, 32, 64).batch_sizes == (16, 32)


def test_the_larger_group_of_sizes_that_agree_is_used():
    small_differ = with_other_bits(lambda x: len(x) <= 2)
    assert calibrated(pool(small_differ), 1, 2, 4, 8, 16).batch_sizes == (4, 8, 16)


def test_the_group_with_the_larger_size_is_used_of_two_equally_long_ones():
    small_differ = with_other_bits(lambda x: len(x) <= 2)
    assert calibrated(pool(small_differ), 1, 2, 4, 8).batch_sizes == (4, 8)


def test_threads_whose_bits_are_not_those_of_one_thread_are_not_used():
    odd = with_other_bits(lambda x: torch.get_num_threads() > 1)
    found = calibrated(pool(odd), 1, 2, cores=2)
    assert found.threads == 1
    found.use()
    assert torch.get_num_threads() == 1


def test_threads_have_to_agree_with_one_thread_in_every_size():
    odd = with_other_bits(lambda x: len(x) == 4 and torch.get_num_threads() == 1)
    found = calibrated(pool(odd), 1, 2, 4, cores=2)
    assert (found.threads, found.batch_sizes) == (1, (1, 2))


def test_steps_by_fewer_threads_are_timed_by_these_threads():
    clock = SimulatedClock()

    def network(x: Tensor, t: Tensor) -> Tensor:
        clock.pass_s(0.02 if torch.get_num_threads() == 1 else 0.001)
        return gaussian_eps(x, t)

    found = calibrate(pool(network), 1000, (1, 2), clock=clock, cores=2)
    assert (found.threads, found.fewer) == (2, 1)
    assert found.seconds_by(2) == pytest.approx({1: 0.001, 2: 0.001})
    assert found.seconds_by(1) == pytest.approx({1: 0.02, 2: 0.02})


def test_half_of_many_cores_are_used_if_they_are_much_faster():
    clock = SimulatedClock()

    def network(x: Tensor, t: Tensor) -> Tensor:
        clock.pass_s({8: 0.03, 4: 0.01}.get(torch.get_num_threads(), 0.02))
        return gaussian_eps(x, t)

    assert calibrate(pool(network), 1000, (1, 2), clock=clock, cores=8).threads == 4


def test_a_size_beyond_the_pool_is_not_used():
    assert calibrated(pool(capacity=5), 1, 4, 8).batch_sizes == (1, 4)


def test_a_size_that_does_not_fit_the_memory_is_left_out(caplog: pytest.LogCaptureFixture):
    def hungry(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gaussian_eps(x, t)

    assert calibrated(pool(hungry), 1, 2, 4, 8, 16).batch_sizes == (1, 2, 4)
    assert "a batch of 8 does not fit" in caplog.text


def test_no_larger_batch_is_tried_than_one_that_takes_half_of_the_longest_step():
    sizes: list[int] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return gaussian_eps(x, t)

    assert calibrated(pool(watched), 2, 4, longest_step_s=0.0015).batch_sizes == (2,)
    assert set(sizes) == {2}


def test_the_rate_is_that_of_the_size_that_gives_the_most():
    assert Calibration({1: 0.5, 2: 0.5, 4: 2.0}).image_steps_per_s == 4


@pytest.mark.parametrize(
    ("saved", "beaten"),
    [
        ({2: 0.2, 4: 0.02}, True),
        ({2: 0.02, 4: 0.2}, True),
        ({2: 0.02, 4: 0.02}, False),
        ({2: 0.001}, False),
    ],
)
def test_a_calibration_is_beaten_by_small_or_large_steps_that_are_much_faster(
    saved: dict[int, float], beaten: bool
):
    clock = SimulatedClock()

    def network(x: Tensor, t: Tensor) -> Tensor:
        clock.pass_s(0.02)
        return gaussian_eps(x, t)

    assert is_beaten(pool(network), 1000, Calibration(saved, threads=1), clock) == beaten
    assert torch.get_num_threads() == 1, "the saved calibration is of one thread"


@pytest.mark.parametrize(("other_at", "changed"), [(2, True), (8, True), (4, False), (16, False)])
def test_bits_of_the_smallest_and_the_largest_saved_size_are_compared(other_at: int, changed: bool):
    saved = calibrated(pool(), 2, 4, 8, cores=1)
    odd = with_other_bits(lambda x: len(x) == other_at)
    assert draws_other_bits(pool(odd), 1000, saved) == changed


def test_a_size_that_does_not_fit_any_more_says_nothing_of_bits():
    saved = calibrated(pool(), 2, 4, cores=1)

    def full(x: Tensor, t: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert not draws_other_bits(pool(full), 1000, saved)
