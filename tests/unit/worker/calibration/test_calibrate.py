from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.diffusion.sampling import Network
from tests.support.networks import SHAPE, gaussian_eps
from worker.calibration.calibrate import Calibration, calibrate, is_beaten
from worker.engine.pool import Pool

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pool(network: Network = gaussian_eps, capacity: int = 64) -> Pool:
    return Pool(network, SHAPE, capacity, CPU)


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
    assert calibrate(pool(odd), 1000, (2, 4, 8, 16)).batch_sizes == (2, 4, 16)


def test_a_size_is_dropped_for_one_pixel():
    odd = with_other_bits(lambda x: len(x) == 4, slice(0, 1))
    assert calibrate(pool(odd), 1000, (1, 2, 4)).batch_sizes == (1, 2)


def test_a_size_is_dropped_where_only_its_last_places_have_other_bits():
    """A batch has more places than chains are compared."""

    def odd(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        out[63:] = torch.nextafter(out[63:], torch.tensor(9.0))
        return out

    assert calibrate(pool(odd), 1000, (16, 32, 64)).batch_sizes == (16, 32)


def test_where_sizes_fall_into_groups_the_larger_group_is_used():
    small_differ = with_other_bits(lambda x: len(x) <= 2)
    assert calibrate(pool(small_differ), 1000, (1, 2, 4, 8, 16)).batch_sizes == (4, 8, 16)


def test_of_groups_of_one_length_the_one_with_the_larger_size_is_used():
    small_differ = with_other_bits(lambda x: len(x) <= 2)
    assert calibrate(pool(small_differ), 1000, (1, 2, 4, 8)).batch_sizes == (4, 8)


def test_a_number_of_threads_whose_bits_are_not_those_of_one_thread_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("worker.calibration.calibrate.available_cores", lambda: 2)
    odd = with_other_bits(lambda x: torch.get_num_threads() > 1)
    found = calibrate(pool(odd), 1000, (1, 2))
    assert found.threads == 1
    found.use()
    assert torch.get_num_threads() == 1


def test_a_number_of_threads_has_to_agree_with_one_thread_in_every_size(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("worker.calibration.calibrate.available_cores", lambda: 2)
    odd = with_other_bits(lambda x: len(x) == 4 and torch.get_num_threads() == 1)
    found = calibrate(pool(odd), 1000, (1, 2, 4))
    assert (found.threads, found.batch_sizes) == (1, (1, 2))


def test_what_fewer_threads_take_is_measured_by_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.calibration.calibrate.available_cores", lambda: 2)

    def network(x: Tensor, t: Tensor) -> Tensor:
        time.sleep(0.02 if torch.get_num_threads() == 1 else 0.001)
        return gaussian_eps(x, t)

    found = calibrate(pool(network), 1000, (1, 2))
    assert (found.threads, found.fewer) == (2, 1)
    assert found.seconds_by(2).keys() == found.seconds_by(1).keys() == {1, 2}
    assert min(found.seconds_by(1).values()) > 0.02 > max(found.seconds_by(2).values())


def test_a_size_beyond_the_pool_is_not_used():
    assert calibrate(pool(capacity=5), 1000, (1, 4, 8)).batch_sizes == (1, 4)


def test_a_size_that_does_not_fit_the_memory_costs_the_size_and_not_the_worker(
    caplog: pytest.LogCaptureFixture,
):
    def hungry(x: Tensor, t: Tensor) -> Tensor:
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gaussian_eps(x, t)

    assert calibrate(pool(hungry), 1000, (1, 2, 4, 8, 16)).batch_sizes == (1, 2, 4)
    assert "a batch of 8 does not fit" in caplog.text


def test_no_larger_batch_is_tried_than_one_that_takes_half_of_the_longest_step(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("worker.calibration.calibrate.LONGEST_STEP_S", 0.0)
    sizes: list[int] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return gaussian_eps(x, t)

    assert calibrate(pool(watched), 1000, (2, 4)).batch_sizes == (2,)
    assert set(sizes) == {2}


def test_the_rate_is_that_of_the_size_that_gives_the_most():
    assert Calibration({1: 0.5, 2: 0.5, 4: 2.0}).image_steps_per_s == 4


@pytest.mark.parametrize(
    ("kept", "beaten"),
    [
        ({2: 0.2, 4: 0.02}, True),
        ({2: 0.02, 4: 0.2}, True),
        ({2: 0.02, 4: 0.02}, False),
        ({2: 0.001}, False),
    ],
)
def test_a_calibration_is_beaten_by_small_or_large_steps_that_are_much_faster(
    kept: dict[int, float], beaten: bool
):
    def slow(x: Tensor, t: Tensor) -> Tensor:
        time.sleep(0.02)
        return gaussian_eps(x, t)

    assert is_beaten(pool(slow), 1000, Calibration(kept, threads=1)) == beaten
    assert torch.get_num_threads() == 1, "it is by these threads that it was kept"
