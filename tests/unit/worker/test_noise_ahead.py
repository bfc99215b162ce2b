"""Noise drawn for several steps at once is the noise that each of them would have drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.noise import normal
from worker.noise_ahead import NoiseAhead

SHAPE = (1, 4, 6)
Chain = tuple[int, int, int, int]  # slot, seed, index, draw


def drawn(ahead: NoiseAhead, chains: Sequence[Chain]) -> torch.Tensor:
    return torch.from_numpy(ahead(*np.array(chains).T))


def expected(chains: Sequence[Chain]) -> torch.Tensor:
    _, seed, index, draw = torch.tensor(chains).T
    return normal(seed, index, draw, SHAPE)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many values of noise each call of the generator was asked for."""
    asked: list[int] = []

    def counted(seed: torch.Tensor, index: torch.Tensor, draw: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
        asked.append(len(seed))
        return normal(seed, index, draw, shape)

    monkeypatch.setattr("worker.noise_ahead.normal", counted)
    return asked


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), *[st.integers(0, 40)] * 3), min_size=1, max_size=4, unique_by=lambda c: c[0]))
)
def test_whatever_was_asked_for_before_the_noise_is_that_of_its_address(turns: list[list[Chain]]):
    ahead = NoiseAhead(4, SHAPE)
    for chains in turns:
        assert torch.equal(drawn(ahead, chains), expected(chains))


def test_the_largest_addresses_are_drawn(draws: list[int]):
    chains = [(0, 2**53 - 1, 2**32 - 1, 2**31)]
    assert torch.equal(drawn(NoiseAhead(1, SHAPE), chains), expected(chains))


def test_one_chain_s_steps_are_drawn_sixteen_at_once(draws: list[int]):
    ahead = NoiseAhead(1, SHAPE)
    for draw in range(32):
        assert torch.equal(drawn(ahead, [(0, 5, 6, draw)]), expected([(0, 5, 6, draw)]))
    assert draws == [16, 16]


def test_only_chains_that_have_none_draw(draws: list[int]):
    ahead = NoiseAhead(2, SHAPE)
    drawn(ahead, [(0, 5, 6, 1)])
    drawn(ahead, [(0, 5, 6, 2), (1, 5, 7, 1)])
    assert draws == [16, 16]


def test_of_large_pictures_and_many_chains_no_more_is_drawn_than_the_step_needs(draws: list[int]):
    large = (3, 128, 128)
    NoiseAhead(1, large)(*np.array([(0, 5, 6, 1)]).T)
    crowd = np.arange(5000)
    NoiseAhead(5000, SHAPE)(crowd, crowd, crowd, np.ones_like(crowd))
    assert draws == [1, 5000]


def test_of_very_many_chains_it_keeps_no_more_than_a_quarter_of_a_gigabyte():
    assert NoiseAhead(65537, (1, 28, 28)).values.nbytes <= 2**28
