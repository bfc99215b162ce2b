"""Noise: Philox's known answers, independence of the batch, and its distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.diffusion import noise
from models.diffusion.noise import normal, philox

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 5, 7), (1, 3, 3), (3, 17, 13), (1, 1, 1)]
ALL = 0xFFFFFFFF


def word(value: int) -> Tensor:
    return torch.tensor([value])


def words_of(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
    """Compute the words of one counter and one key, in the order of the paper."""
    c0, c1, c2, c3 = counter
    out = philox(torch.tensor([[c0, c2], [c1, c3]])[..., None, None], torch.tensor(key)[:, None])
    return tuple(int(out[i][0, 0]) for i in [(0, 0), (1, 0), (0, 1), (1, 1)])


# kat_vectors of Random123
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers(counter, key, answer):
    assert words_of(counter, key) == answer


def test_torch_and_numpy_compute_the_same_words():
    """A GPU computes them with torch, and a CPU with NumPy."""
    torch.manual_seed(0)
    counter = torch.randint(0, ALL + 1, (2, 2, 5, 7))
    key = torch.randint(0, ALL + 1, (2, 5))
    by_torch = noise.philox(counter, key, noise.rounds_in_torch)
    assert torch.equal(by_torch, noise.philox(counter, key, noise.rounds_in_numpy))


def test_a_value_is_box_muller_of_the_words_at_its_address():
    """The counter is (lane, draw, index, 0), and the key the two halves of the seed."""
    seed, index, draw = 2**53 - 1, 4_000_000_000, 1000
    found = normal(word(seed), word(index), word(draw), (1, 2, 3)).flatten()
    lanes = [words_of((lane, draw, index, 0), (seed & ALL, seed >> 32)) for lane in (0, 1)]

    def pair(u: int, v: int) -> tuple[float, float]:
        radius = math.sqrt(-2 * math.log((u + 0.5) / 2**32))
        angle = 2 * math.pi * (v + 0.5) / 2**32
        return radius * math.cos(angle), radius * math.sin(angle)

    pairs = [[pair(w[0], w[1]) for w in lanes], [pair(w[2], w[3]) for w in lanes]]
    values = [pair[half] for of_lanes in pairs for half in (0, 1) for pair in of_lanes]
    torch.testing.assert_close(found, torch.tensor(values[:6]), rtol=1e-6, atol=1e-7)


seeds = st.integers(0, 2**53 - 1)
words = st.integers(0, ALL)


@settings(max_examples=60)
@given(
    chains=st.lists(st.tuples(seeds, words, words), min_size=1, max_size=40),
    shape=st.sampled_from(SHAPES),
    threads=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_noise_does_not_depend_on_batch_mates_batch_size_place_or_threads(
    chains, shape, threads, data
):
    order = data.draw(st.permutations(range(len(chains))))
    picked = order[: max(1, len(order) // 2)]
    torch.set_num_threads(threads)
    together = normal(*torch.tensor(chains).T, shape)
    torch.set_num_threads(1)
    some = normal(*torch.tensor([chains[i] for i in picked]).T, shape)
    alone = normal(*torch.tensor([chains[picked[0]]]).T, shape)
    assert torch.equal(some, together[picked])
    assert torch.equal(alone[0], together[picked[0]])


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_has_the_asked_shape_and_is_always_finite(shape):
    z = normal(torch.arange(7), torch.arange(7), torch.arange(7), shape)
    assert z.shape == (7, *shape)
    assert z.dtype == torch.float32
    assert bool(z.isfinite().all())


@pytest.fixture(scope="module")
def million() -> Tensor:
    """A million values: 16 seeds, 16 images, 4 draws, 1024 pixels."""
    ranges = (torch.arange(16), torch.arange(16), torch.arange(4))
    seed, index, draw = (grid.flatten() for grid in torch.meshgrid(*ranges, indexing="ij"))
    return normal(seed, index, draw, (1, 32, 32)).view(16, 16, 4, 1024).double()


def test_the_moments_are_those_of_the_normal_distribution(million):
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = 4.5 * math.sqrt(variance / million.numel())
        assert million.pow(power).mean().item() == pytest.approx(moment, abs=error), power


def test_the_distribution_is_normal_by_kolmogorov_and_smirnov(million):
    z, n = million.flatten().sort().values, million.numel()
    cdf = (1 + torch.erf(z / math.sqrt(2))) / 2
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((steps[1:] - cdf).max().item(), (cdf - steps[:-1]).max().item())
    # p = 0.001
    assert distance * math.sqrt(n) < 1.95


@pytest.mark.parametrize(("axis", "name"), [(0, "seed"), (1, "index"), (2, "draw"), (3, "pixel")])
def test_neighbours_are_not_correlated(million, axis, name):
    a, b = (million.narrow(axis, start, million.shape[axis] - 1) for start in (0, 1))
    for f in (lambda z: z, lambda z: z.square() - 1):
        x, y = f(a), f(b)
        correlation = ((x * y).mean() / (x.square().mean() * y.square().mean()).sqrt()).item()
        assert abs(correlation) < 4.5 / math.sqrt(a.numel()), name


def test_the_two_halves_of_a_box_muller_pair_are_not_correlated(million):
    quarters = million.reshape(-1, 4, 256)
    for i in range(4):
        for j in range(i):
            products = quarters[:, i] * quarters[:, j]
            assert abs(products.mean().item()) < 4.5 / math.sqrt(products.numel())


def test_no_two_addresses_share_their_noise():
    """Some exchange seed, index and draw, and some seeds differ only in the high word."""
    addresses = [
        (1, 2, 3),
        (1, 3, 2),
        (2, 1, 3),
        (3, 2, 1),
        (1, 2, 4),
        (1 + 2**32, 2, 3),
        (1 + 2**52, 2, 3),
        (0, 0, 0),
    ]
    z = normal(*torch.tensor(addresses).T, (1, 4, 4)).flatten(1)
    assert len(z.flatten().unique()) == z.numel()
