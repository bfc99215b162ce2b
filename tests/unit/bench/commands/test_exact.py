"""The differences that the parity table counts."""

from __future__ import annotations

import pytest
import torch

from bench.commands.exact import difference


def images(*values: int) -> dict[int, torch.Tensor]:
    return {
        index: torch.full((1, 2, 2), value, dtype=torch.uint8) for index, value in enumerate(values)
    }


def test_equal_images_differ_in_no_byte() -> None:
    assert difference(images(0, 255), images(0, 255)) == (0, 0)


def test_a_difference_of_one_byte_by_one_level_is_seen() -> None:
    other = images(0, 255)
    other[1][0, 1, 1] -= 1
    assert difference(other, images(0, 255)) == (1, 1)


def test_black_for_white_is_255_levels_and_not_1() -> None:
    assert difference(images(0), images(255)) == (4, 255)


def test_an_image_that_is_missing_is_no_agreement() -> None:
    with pytest.raises(AssertionError):
        difference(images(0), images(0, 255))
