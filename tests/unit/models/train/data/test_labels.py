"""The classes of images: those of folders, of an IDX file beside them, or of an npz."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.train.data.folder import FolderOptions
from models.train.data.images import BadData, KnownClasses, Labels
from models.train.data.source import open_images

PIXELS = np.zeros((3, 8, 8), np.uint8)
TWO = KnownClasses(2, ("cat", "dog"))


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    return root


def labels(path: Path, known: KnownClasses | None = None) -> Labels:
    found = open_images(path, 8, 1, FolderOptions(labelled=True, known=known)).labels
    assert found is not None
    return found


def idx(values: bytes, count: int | None = None) -> bytes:
    return struct.pack(">4sI", b"\0\0\x08\x01", len(values) if count is None else count) + values


def write_idx(folder: Path, content: bytes, name: str = "some-labels-idx1-ubyte") -> Path:
    path = folder / "some-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4s3I", b"\0\0\x08\x03", *PIXELS.shape) + PIXELS.tobytes())
    (folder / name).write_bytes(content)
    return path


def test_the_first_folder_of_a_picture_is_its_class(tmp_path):
    root = folder_of(tmp_path, "dog/1.png", "cat/deep/2.png", "cat/3.png")
    found = labels(root)
    assert (found.names, found.count) == (("cat", "dog"), 2)
    # in the order of their names
    assert found.of_images.tolist() == [0, 0, 1]


def test_pictures_of_some_classes_keep_the_numbers_that_a_network_knows(tmp_path):
    found = labels(folder_of(tmp_path, "dog/1.png"), TWO)
    assert (found.of_images.tolist(), found.count) == ([1], 2)


@pytest.mark.parametrize(
    ("names", "known", "says"),
    [
        (("a.png", "cat/b.png"), None, "a.png in no folder of a class; put each class into"),
        (("cat/b.png",), None, "in one folder only, cat; classes are two or more"),
        (("cow/b.png",), TWO, "cow are no classes of the model, which has cat, dog; rename"),
        (("a/1.png", "b/2.png"), KnownClasses(3), "has 2 classes, a, b, and the model has 3"),
    ],
)
def test_folders_that_are_no_classes_are_named(tmp_path, names, known, says):
    with pytest.raises(BadData, match=says):
        labels(folder_of(tmp_path, *names), known)


def test_without_a_wish_for_classes_folders_are_none(tmp_path):
    assert open_images(folder_of(tmp_path, "a/1.png", "b/2.png"), 8, 1).labels is None


@pytest.mark.parametrize("zipped", [False, True])
def test_labels_of_an_idx_file_lie_beside_it(tmp_path, zipped):
    content = idx(bytes([2, 0, 1]))
    name = "some-labels-idx1-ubyte" + (".gz" if zipped else "")
    found = labels(write_idx(tmp_path, gzip.compress(content) if zipped else content, name))
    assert (found.of_images.tolist(), found.count, found.names) == ([2, 0, 1], 3, None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (idx(bytes([0, 1])), "has 2 labels for 3 images; give one for each"),
        (idx(bytes([0, 1, 1]), count=9), "does not hold what its header promises"),
        (b"\0\0\x08\x03" + bytes(12), "is not an IDX file of bytes with one dimension"),
        (b"\x1f\x8bbroken", "cannot be read"),
        (idx(bytes(3)), "has one class only; leave out data.classes"),
    ],
)
def test_wrong_labels_of_an_idx_file_are_named(tmp_path, content, says):
    with pytest.raises(BadData, match=says):
        labels(write_idx(tmp_path, content))


def test_missing_labels_of_an_idx_file_are_named(tmp_path):
    path = write_idx(tmp_path, b"", name="other")
    with pytest.raises(BadData, match="some-labels-idx1-ubyte does not exist, and would hold"):
        labels(path)
    path = path.rename(tmp_path / "images")
    with pytest.raises(BadData, match="says nothing of its labels; name it like train-images"):
        labels(path)


def test_labels_of_an_npz_are_an_array_in_it(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array([1, 0, 4]))
    found = labels(tmp_path / "a.npz")
    assert (found.of_images.tolist(), found.count) == ([1, 0, 4], 5)


@pytest.mark.parametrize(
    ("array", "known", "says"),
    [
        (None, None, "has no array 'labels' for data.classes; write it with"),
        (np.zeros((3, 2), int), None, "of shape \\(3, 2\\); give whole numbers \\(N,\\)"),
        (np.zeros(3), None, "is float64 of shape"),
        (np.array([0, -1, 1]), None, "has the label -1; the classes are 0 to 1"),
        (np.array([0, 7, 1]), TWO, "has the label 7; the classes are 0 to 1"),
        (np.array(["a", None, "b"], object), None, "cannot be read"),
    ],
)
def test_wrong_labels_of_an_npz_are_named(tmp_path, array, known, says):
    np.savez(tmp_path / "a.npz", images=PIXELS, **({} if array is None else {"labels": array}))
    with pytest.raises(BadData, match=says):
        labels(tmp_path / "a.npz", known)


def test_other_labels_of_the_same_pixels_are_other_images(tmp_path):
    found = []
    for values in ([0, 1, 1], [0, 1, 0]):
        np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.array(values))
        found.append(open_images(tmp_path / "a.npz", 8, 1, FolderOptions(labelled=True)))
    assert not found[0].goes_on_from(found[1].identity)
