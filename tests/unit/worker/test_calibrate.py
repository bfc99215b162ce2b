from __future__ import annotations

import torch
from torch import Tensor

from tests.support.networks import SHAPE, gaussian_eps
from worker.calibrate import calibrate

CPU = torch.device("cpu")


def test_a_size_whose_bits_differ_is_not_used():
    def other_kernel_at_8(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        return torch.nextafter(out, out + 1) if len(x) == 8 else out

    assert calibrate(other_kernel_at_8, SHAPE, 1000, CPU, (2, 4, 8, 16)).buckets == (2, 4, 16)


def test_a_size_is_dropped_for_one_pixel_of_one_chain():
    def odd_chain(x: Tensor, t: Tensor) -> Tensor:
        out = gaussian_eps(x, t)
        if len(x) == 4:
            out[3, 0, 0, 0] = torch.nextafter(out[3, 0, 0, 0], torch.tensor(9.0))
        return out

    assert calibrate(odd_chain, SHAPE, 1000, CPU, (2, 4)).buckets == (2,)


def test_the_rate_is_that_of_the_fastest_bucket():
    found = calibrate(gaussian_eps, SHAPE, 1000, CPU, (2, 4))
    assert found.image_steps_per_s == max(2 / found.seconds[2], 4 / found.seconds[4])
