"""Jobs that arrive at random."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.load.arrivals import SIZES, poisson


def test_every_size_has_its_share_of_the_jobs() -> None:
    assert Counter(arrival.size for arrival in poisson(100, 1.0, seed=3)) == {
        size: round(100 * size.share) for size in SIZES
    }


def test_few_jobs_still_have_one_of_each_size() -> None:
    assert {arrival.size for arrival in poisson(4, 1.0, seed=3)} == set(SIZES)


def test_as_many_images_a_second_come_as_were_asked_for() -> None:
    arrivals = poisson(10_000, images_per_s=20.0, seed=3)
    images = sum(arrival.size.images for arrival in arrivals)
    assert images / arrivals[-1].at_s == pytest.approx(20.0, rel=0.05)
