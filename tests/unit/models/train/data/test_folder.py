"""Folders of pictures: what is taken, what is left out and why, and what is found too late."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from models.train.data import folder as module
from models.train.data.folder import FolderImages, FolderOptions
from models.train.data.images import BadData

RNG = np.random.default_rng(0)
SKIP = FolderOptions(skip_broken=True)


def picture(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(path, **({"format": "PNG"} | options))
    return path


def names(folder: Path, options: FolderOptions | None = None) -> list[str]:
    return FolderImages(folder, 8, 3, options).names


def test_pictures_are_known_by_their_content(tmp_path):
    picture(tmp_path / "a.jfif", format="JPEG")
    picture(tmp_path / "b.JPG")
    picture(tmp_path / "without-suffix")
    picture(tmp_path / "c.dat", format="WEBP")
    (tmp_path / "notes.txt").write_text("not a picture")
    images = FolderImages(tmp_path, 8, 3)
    assert images.names == ["a.jfif", "b.JPG", "c.dat", "without-suffix"]
    assert images.survey.left_out == {"no picture": ["notes.txt"]}
    assert images.batch(torch.arange(4)).shape == (4, 3, 8, 8)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_read_where_pillow_reads_it(tmp_path):
    picture(tmp_path / "a.avif", format="AVIF")
    assert names(tmp_path) == ["a.avif"]


def test_hidden_files_and_links_to_nowhere_are_left_out_by_name(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "x.png").mkdir()
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    picture(tmp_path / ".thumbnails" / "t.png")
    picture(tmp_path / "__MACOSX" / "m.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    images = FolderImages(tmp_path, 8, 3)
    assert images.names == ["a.png"]
    assert images.survey.left_out == {
        "hidden": ["._a.png", ".thumbnails", "__MACOSX"],
        "a link that leads nowhere": ["gone.png"],
        "not a file": ["pipe.png"],
    }


def test_linked_class_folders_are_taken_and_loops_end(tmp_path):
    picture(tmp_path / "elsewhere" / "a.png")
    data = tmp_path / "data"
    picture(data / "roses" / "b.png")
    (data / "tulips").symlink_to(tmp_path / "elsewhere")
    (data / "roses" / "loop").symlink_to(data)
    (data / "roses" / "self").symlink_to(data / "roses")
    images = FolderImages(data, 8, 3)
    assert images.names == ["roses/b.png", "tulips/a.png"]
    assert images.survey.classes == {"roses": 1, "tulips": 1}
    assert images.survey.left_out == {
        "a folder that is taken already": ["roses/loop", "roses/self"]
    }


def test_the_survey_counts_classes_and_names_what_is_left_out(tmp_path):
    for name in ("roses/1.png", "roses/2.png", "tulips/1.png"):
        picture(tmp_path / name)
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("text")
    assert FolderImages(tmp_path, 8, 3).survey.lines() == [
        "3 pictures (roses 2, tulips 1)",
        "left out, no picture: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more",
    ]


def test_all_broken_pictures_are_named_before_the_first_is_needed(tmp_path):
    picture(tmp_path / "a.png")
    whole = picture(tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.jpg").write_bytes(b"")
    (tmp_path / "d.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 20)
    text = (
        r"c\.jpg cannot be read as an image \(the file is empty\), nor can d\.heic, b\.png;"
        r" put .* or go on without it by --skip-broken"
    )
    with pytest.raises(BadData, match=text):
        names(tmp_path)
    images = FolderImages(tmp_path, 8, 3, SKIP)
    assert images.names == ["a.png"]
    reasons = " ".join(images.survey.left_out["unreadable"])
    assert "d.heic (it is HEIC, which Pillow does not read)" in reasons
    assert "b.png (" in reasons


def test_a_large_folder_is_decoded_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DECODED_BYTES", 100)
    picture(tmp_path / "a.png")
    whole = picture(tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    images = FolderImages(tmp_path, 8, 3)
    assert images.survey.lines() == [
        "2 pictures; their headers were read (--decode-all reads all of each)"
    ]
    with pytest.raises(BadData, match="--skip-broken"):
        images.batch(torch.tensor([1]))
    with pytest.raises(BadData, match=r"b\.png cannot be read"):
        names(tmp_path, FolderOptions(decode_all=True))
    assert names(tmp_path, SKIP) == ["a.png"]


def test_a_run_goes_on_with_the_pictures_that_it_began_with(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    began = FolderImages(tmp_path, 8, 3)
    picture(tmp_path / "new.png")
    again = FolderImages(tmp_path, 8, 3, FolderOptions(began_with=began.names))
    assert again.names == began.names
    assert again.goes_on_from(began.identity)
    assert again.survey.left_out == {"new since the run began": ["new.png"]}
    (tmp_path / "b.png").unlink()
    with pytest.raises(BadData, match=r"b\.png cannot be read as an image \(it is gone\)"):
        names(tmp_path, FolderOptions(began_with=began.names))
    left = FolderImages(tmp_path, 8, 3, FolderOptions(began.names, skip_broken=True))
    assert left.names == ["a.png", "c.png"]
    assert left.goes_on_from(began.identity)
    assert not FolderImages(tmp_path, 8, 3, SKIP).goes_on_from(began.identity)


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        (np.full((8, 8), 4000, np.uint16), "levels end at 4000 of 65535, as those of a 12-bit"),
        (np.full((8, 8), 70000, np.int32), "levels are 32-bit integers of unknown range"),
        (np.full((8, 8), 0.5, np.float32), "levels are floating-point numbers"),
    ],
)
def test_levels_of_an_unknown_range_are_refused(tmp_path, levels, text):
    Image.fromarray(levels).save(tmp_path / "a.tif")
    with pytest.raises(BadData, match=text):
        names(tmp_path)


def test_sixteen_bit_grey_of_pgm_keeps_its_levels(tmp_path):
    header = b"P5 8 8 65535\n"
    levels = np.linspace(0, 65535, 64).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(header + levels.tobytes())
    pixels = FolderImages(tmp_path, 8, 1).batch(torch.tensor([0])).numpy().flatten()
    assert np.abs(pixels - np.linspace(0, 255, 64)).max() <= 1.5
