"""The distance between pictures."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.quality import Classifier, Gaussian, labels, scaled, trained


def test_the_distance_of_gaussians_is_known_where_their_axes_agree():
    """The sum over axes of the squares of (mean - mean') and (sigma - sigma')."""
    one = Gaussian(np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    assert one.distance(Gaussian(np.array([2.0, 1.0]), np.diag([1.0, 25.0]))) == pytest.approx(2**2 + 1**2 + 2**2)
    turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    both = [Gaussian(turned @ g.mean, turned @ g.covariance @ turned.T) for g in (one, Gaussian(np.zeros(2), np.eye(2)))]
    assert both[0].distance(both[1]) == pytest.approx(1**2 + 1**2 + 2**2)


def test_a_gaussian_is_that_of_its_sample():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    found = Gaussian.of(x)
    assert found.distance(found) == pytest.approx(0, abs=1e-9)
    assert np.allclose(found.covariance, np.cov(x.double().numpy().T))


def test_a_classifier_learns_and_has_features_for_each_picture():
    pixels = torch.zeros(256, 1, 28, 28, dtype=torch.uint8)
    pixels[::2] = 255
    classes = torch.arange(256, dtype=torch.uint8) % 2
    net = trained(pixels, classes, epochs=8)
    assert torch.equal(net(scaled(pixels)).argmax(1), classes.long())
    assert net.features(pixels[:5]).shape == (5, 64)
    assert isinstance(net, Classifier)


def test_labels_are_read(tmp_path: Path):
    (tmp_path / "labels.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x03" + bytes([7, 0, 9])))
    assert labels(tmp_path / "labels.gz").tolist() == [7, 0, 9]
