"""The distance between pictures."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from bench.commands.quality import Classifier, Gaussian, labels, main, pictures, trained
from models.checkpoints.catalog import Catalog
from models.diffusion.sampling import from_bytes
from tests.support.folders import write_model
from worker.calibration.calibrate import Calibration
from worker.process.loaded_model import LoadedModel


def test_the_distance_of_gaussians_is_known_where_their_axes_agree():
    """The sum over axes of the squares of (mean - mean') and (sigma - sigma')."""
    one = Gaussian(np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    assert one.distance(Gaussian(np.array([2.0, 1.0]), np.diag([1.0, 25.0]))) == pytest.approx(
        2**2 + 1**2 + 2**2
    )
    turned = np.array([[0.6, -0.8], [0.8, 0.6]])
    both = [
        Gaussian(turned @ g.mean, turned @ g.covariance @ turned.T)
        for g in (one, Gaussian(np.zeros(2), np.eye(2)))
    ]
    assert both[0].distance(both[1]) == pytest.approx(1**2 + 1**2 + 2**2)


def test_a_gaussian_is_that_of_its_sample():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 2.0, 3.0]
    )
    found = Gaussian.of(x)
    assert found.distance(found) == pytest.approx(0, abs=1e-9)
    assert np.allclose(found.covariance, np.cov(x.double().numpy().T))


def test_a_classifier_learns_and_has_features_for_each_picture():
    pixels = torch.zeros(256, 1, 28, 28, dtype=torch.uint8)
    pixels[::2] = 255
    classes = torch.arange(256, dtype=torch.uint8) % 2
    net = trained(pixels, classes, epochs=8)
    assert torch.equal(net(from_bytes(pixels)).argmax(1), classes.long())
    assert net.features(pixels[:5]).shape == (5, 64)
    assert isinstance(net, Classifier)


def test_labels_are_read(tmp_path: Path):
    (tmp_path / "labels.gz").write_bytes(
        gzip.compress(b"\0\0\x08\x01\0\0\0\x03" + bytes([7, 0, 9]))
    )
    assert labels(tmp_path / "labels.gz").tolist() == [7, 0, 9]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedModel]:
    """With room for 4 chains, 2 in a batch."""
    before = torch.get_num_threads()
    write_model(tmp_path, "tiny")
    monkeypatch.setattr(
        "worker.calibration.tune.calibrate", lambda *_, **__: Calibration({2: 1.0}, threads=1)
    )
    yield LoadedModel(Catalog.read(tmp_path), "tiny", torch.device("cpu"), 4, "fp32")
    torch.set_num_threads(before)


def test_pictures_may_be_more_than_the_model_has_room_for(model: LoadedModel):
    few, many = (list(pictures(model, "ddim", [2, 3], images)) for images in (3, 9))
    assert [drawn.shape for drawn in many] == [(9, 1, 8, 8)] * 2
    assert all(torch.equal(one, other[:3]) for one, other in zip(few, many, strict=True))
    assert len({picture.numpy().tobytes() for picture in many[1]}) == 9


def test_more_pictures_than_there_are_to_compare_with_are_refused_before_a_report_is_begun(
    tmp_path: Path,
):
    for part in ("train", "t10k"):
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 28, 28))
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(header + bytes(2 * 28 * 28))
        )
    with pytest.raises(
        typer.BadParameter,
        match="100 is more than the 2 training pictures to compare with; give 2 or fewer",
    ):
        main(images=100, data=tmp_path, device="cpu", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
