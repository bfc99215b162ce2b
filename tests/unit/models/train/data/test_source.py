"""Images to train on: every format is read, and every fault is named with its file."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from models.train.data.images import BadData
from models.train.data.source import open_images

GREY = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
COLOUR = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)


def idx(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


def everything(images) -> np.ndarray:
    return images.batch(torch.arange(len(images))).numpy()


@pytest.mark.parametrize("name", ["images-idx3-ubyte", "images-idx3-ubyte.gz"])
def test_idx_files_are_read_plain_and_zipped(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(idx(GREY)) if name.endswith("gz") else idx(GREY))
    assert np.array_equal(everything(open_images(path, 4, 1)), GREY[:, None])


def test_an_npz_of_grey_or_coloured_images_is_read(tmp_path):
    np.savez(tmp_path / "grey.npz", labels=np.zeros(3), images=GREY)
    np.savez_compressed(tmp_path / "colour.npz", whatever=COLOUR)
    assert np.array_equal(everything(open_images(tmp_path / "grey.npz", 4, 1)), GREY[:, None])
    coloured = everything(open_images(tmp_path / "colour.npz", 4, 3))
    assert np.array_equal(coloured, COLOUR.transpose(0, 3, 1, 2))


def test_a_batch_follows_the_order_asked_for(tmp_path):
    (tmp_path / "i").write_bytes(idx(GREY))
    picked = open_images(tmp_path / "i", 4, 1).batch(torch.tensor([2, 0, 2])).numpy()
    assert np.array_equal(picked[:, 0], GREY[[2, 0, 2]])


def test_a_folder_is_read_in_the_order_of_its_names_and_below(tmp_path):
    (tmp_path / "sub").mkdir()
    for level, name in [(30, "sub/c.PNG"), (10, "a.png"), (20, "b.bmp")]:
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    images = open_images(tmp_path, 4, 1)
    assert len(images) == 3
    assert everything(images)[:, 0, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_kind_of_image_becomes_the_networks_channels(tmp_path, mode, channels):
    Image.new("RGB", (9, 5), (204, 204, 204)).convert(mode).save(tmp_path / "a.tif")
    pixels = everything(open_images(tmp_path, 8, channels))
    assert pixels.shape == (1, channels, 8, 8)
    if mode != "1":
        assert np.abs(pixels.astype(int) - 204).max() <= 3


def test_sixteen_bit_grey_keeps_its_levels(tmp_path):
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    pixels = everything(open_images(tmp_path, 8, 1))[0, 0]
    assert np.abs(pixels.flatten() - np.linspace(0, 255, 64)).max() <= 1.5


def test_an_oblong_image_is_cropped_to_its_middle(tmp_path):
    picture = np.zeros((8, 16), np.uint8)
    picture[:, 4:12] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert everything(open_images(tmp_path, 8, 1)).min() == 255


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"x" * 99,
        lambda raw: raw[:60] + b"\0" * 60 + raw[120:],
    ],
)
def test_a_corrupt_image_is_named(tmp_path, spoil):
    path = tmp_path / "broken.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    text = (
        r"broken\.png cannot be read as an image .*;"
        " put an 8-bit PNG or JPEG in its place, under the same name"
    )
    with pytest.raises(BadData, match=text):
        everything(open_images(tmp_path, 8, 3))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.gz", b"not zipped", "is not an IDX file"),
        ("a.gz", gzip.compress(idx(GREY), mtime=0)[:-9], "cannot be read.*download it again"),
        ("a.idx", b"\x89PNG", "is one picture; give a folder"),
        ("a.idx", b"\0\0\x08\x03\0\0", "is not an IDX file"),
        ("a.idx", b"\0\0\x0d\x03" + idx(GREY)[4:], "is not an IDX file of bytes"),
        ("a.idx", idx(GREY)[:-1], "holds 47 bytes where its header promises 48; download it again"),
        ("a.idx", idx(GREY[:0]), "holds no images"),
        (
            "a.idx",
            idx(GREY.reshape(3, 2, 8)),
            r"holds an array of shape \(3, 2, 8\), the network takes \(N, 4, 4\)",
        ),
        ("a.npz", b"garbage", "is not an npz of plain arrays.*numpy.savez"),
        ("a.npz", b"", "is not an npz of plain arrays"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_named_with_the_remedy(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadData, match=says) as error:
        open_images(path, 4, 1)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (GREY.astype(np.float32), r"'images' is float32 of shape \(3, 4, 4\); give uint8"),
        (GREY[0], "give uint8"),
        (np.array([object()]), "not an npz of plain arrays"),
        (COLOUR, "the network takes"),
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, array, says):
    np.savez(tmp_path / "a.npz", images=array)
    with pytest.raises(BadData, match=says):
        open_images(tmp_path / "a.npz", 4, 1)


def test_a_path_without_images_is_named(tmp_path):
    with pytest.raises(BadData, match="holds no image files"):
        open_images(tmp_path, 4, 1)
    with pytest.raises(BadData, match="does not exist"):
        open_images(tmp_path / "absent", 4, 1)


def test_an_image_is_turned_as_its_exif_data_says(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    # to be turned clockwise
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(everything(open_images(tmp_path, 8, 1))[0, 0], np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("mode", "colour", "options"),
    [
        ("RGBA", (200, 0, 0, 0), {}),
        ("LA", (9, 0), {}),
        ("P", 0, {"transparency": 0}),
        ("L", 7, {"transparency": 7}),
    ],
)
def test_transparent_pixels_are_white(tmp_path, mode, colour, options):
    Image.new(mode, (8, 8), colour).save(tmp_path / "a.png", **options)
    assert everything(open_images(tmp_path, 8, 3)).min() == 255


def test_half_transparent_pixels_are_half_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert set(everything(open_images(tmp_path, 8, 1)).flatten()) == {127}


def test_an_image_of_floating_point_numbers_is_refused(tmp_path):
    Image.new("F", (8, 8), 0.7).save(tmp_path / "a.tif")
    text = (
        r"a\.tif .*floating-point numbers of unknown range.*put an 8-bit PNG or JPEG in its place"
    )
    with pytest.raises(BadData, match=text):
        everything(open_images(tmp_path, 8, 1))


def test_an_image_too_large_to_open_is_named(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(BadData, match=r"a\.png cannot be read as an image .*exceeds limit"):
        everything(open_images(tmp_path, 8, 3))


def test_a_folders_identity_is_of_its_names_and_an_arrays_of_its_pixels(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "sub" / "a.png")
    one = open_images(tmp_path, 4, 1).identity
    assert open_images(tmp_path / ".", 8, 3).identity == one
    assert open_images(tmp_path / "sub", 4, 1).identity != one
    (tmp_path / "i").write_bytes(idx(GREY))
    (tmp_path / "j").write_bytes(idx(GREY[::-1]))
    same, other = (open_images(tmp_path / name, 4, 1).identity for name in "ij")
    assert open_images(tmp_path / "i", 4, 1).identity == same != other


def test_pictures_may_be_of_any_shape_and_keep_their_alpha(tmp_path):
    Image.new("RGBA", (40, 40), (10, 20, 30, 128)).save(tmp_path / "a.png")
    with_alpha = everything(open_images(tmp_path, (8, 12), 4))
    assert with_alpha.shape == (1, 4, 8, 12)
    assert set(with_alpha[0, 3].flatten()) == {128}
    assert everything(open_images(tmp_path, (8, 12), 2)).shape == (1, 2, 8, 12)
    assert everything(open_images(tmp_path, (8, 12), 3)).min() > 100
