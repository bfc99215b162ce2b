"""The parity table of `make bench`, in short: the shipped model's images, made in every way."""

from __future__ import annotations

import pytest
import torch

from bench.commands.exact import ExactRow, compare
from bench.lib.model import DEFAULT
from bench.lib.work import Work
from worker.backends.served_network import precisions


@pytest.fixture(scope="module", params=precisions(torch.device("cpu")))
def rows(request: pytest.FixtureRequest) -> list[ExactRow]:
    return list(compare(Work(DEFAULT, "cpu", request.param, images=18, steps=2)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_byte_of_the_shipped_models_images_depends_on_the_way(rows: list[ExactRow]):
    assert {row.way: row.differing for row in rows} == {row.way: 0 for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_images_compared_are_not_all_one(rows: list[ExactRow]):
    for row in rows:
        assert len({image.numpy().tobytes() for image in row.images.values()}) == 18
