"""The estimate that the analytic variance needs, as a file: read to the bit, or refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from models.checkpoints.bad_checkpoint import BadCheckpoint
from models.checkpoints.residual_variance import FILE, ResidualVariance

WEIGHTS = "ab" * 32
FOUND = ResidualVariance(
    weights=WEIGHTS, data="noise.npz", images=3, seed=7, values=(1 / 3, math.pi / 4, 5e-324)
)


def test_an_estimate_is_read_to_the_bit_as_it_was_written(tmp_path: Path):
    sha256 = FOUND.write(tmp_path)
    read = ResidualVariance.read(tmp_path, WEIGHTS, 3, sha256)
    assert read == FOUND
    assert torch.equal(read.tensor, torch.tensor(FOUND.values, dtype=torch.float64))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("weights", "T", "sha256", "says"),
    [
        ("cd" * 32, 3, None, "of weights abababababab, the model has cdcdcdcdcdcd"),
        (WEIGHTS, 4, None, "holds 3 values, the schedule has 4 timesteps"),
        (WEIGHTS, 3, "ef" * 32, "not the one that the card names"),
    ],
)
def test_an_estimate_of_something_else_is_refused(
    tmp_path: Path, weights: str, T: int, sha256: str | None, says: str
):
    FOUND.write(tmp_path)
    with pytest.raises(BadCheckpoint, match=f"{FILE}.*{says}.*ddpm models variance"):
        ResidualVariance.read(tmp_path, weights, T, sha256)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the file: Invalid JSON"),
        (FOUND.model_dump_json().replace("0.3333333333333333", "NaN"), "values.0"),
        (
            FOUND.model_dump_json().replace("0.3333333333333333", "4.1"),
            "values.0: .*less than or equal to 4",
        ),
        (FOUND.model_dump_json().replace('"images":3', '"images":0'), "images"),
    ],
)
def test_a_damaged_estimate_is_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BadCheckpoint, match=f"{FILE}: {says}"):
        ResidualVariance.read(tmp_path, WEIGHTS, 3)


def test_an_estimate_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(BadCheckpoint, match=f"{FILE} is missing"):
        ResidualVariance.read(tmp_path, WEIGHTS, 3)
