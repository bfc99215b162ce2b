"""Files that hold many images: read once, or refused by what they are."""

from __future__ import annotations

import io
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models.train.data.images import BadData
from models.train.data.source import open_images


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", "picture")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PAR1" + b"\0" * 30, "is a Parquet file; save its images as files"),
        (zipped(), "is a zip archive without arrays; unpack it"),
        (tarred(), "is a tar archive; unpack it"),
        (saved(np.zeros(3)), r"is an \.npy, a bare array; write it with numpy\.savez"),
        (pickle.dumps([1]), "is a pickle, which can run code and is not opened"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS; fetch"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".npz", ".gz"])
def test_another_file_is_refused_by_what_it_is(tmp_path, content, text, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadData, match=text):
        open_images(path, 8, 3)


def test_channels_first_are_refused_by_the_shape_in_the_file(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 3, 8, 8), np.uint8))
    text = (
        r"holds an array of shape \(5, 3, 8, 8\), the network takes \(N, 8, 8, 3\)"
        " with channels last"
    )
    with pytest.raises(BadData, match=text):
        open_images(tmp_path / "a.npz", 8, 3)


def test_an_npz_is_known_without_its_suffix(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 8, 8, 3), np.uint8))
    assert len(open_images((tmp_path / "a.npz").rename(tmp_path / "data"), 8, 3)) == 5


def test_an_npz_takes_its_own_size_in_memory(tmp_path: Path):
    pixels = np.zeros((4000, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    tracemalloc.start()
    images = open_images(tmp_path / "a.npz", 32, 3)
    assert images.identity
    batch = images.batch(torch.tensor([0, 5]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batch.shape == (2, 3, 32, 32)
    assert peak < 1.2 * pixels.nbytes
