"""What the storm judges by, and what it takes the commit before from."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.chaos.commit_before import NoHistory, check_out
from tests.chaos.verdict import is_same_picture


def picture(recipe: str, brightness: int = 9) -> bytes:
    written, out = PngInfo(), BytesIO()
    written.add_text("ddpm", recipe)
    Image.new("L", (2, 2), brightness).save(out, "png", pnginfo=written)
    return out.getvalue()


def test_a_picture_is_the_same_if_only_a_commit_added_to_its_recipe() -> None:
    reference = picture('{"seed": 1}')
    assert is_same_picture(reference, picture('{"seed": 1}'))
    assert is_same_picture(reference, picture('{"seed": 1, "fingerprint": "ab"}'))


@pytest.mark.parametrize(
    "other",
    [
        None,
        picture('{"seed": 2}'),
        picture('{"seed": 1}', brightness=10),
        picture('{"seed": 1, "fingerprint": "ab"}', brightness=10),
        picture('{"seed": 2, "fingerprint": "ab"}'),
    ],
)
def test_a_picture_that_is_lost_or_of_other_bytes_is_not_the_same(other: bytes | None) -> None:
    assert not is_same_picture(picture('{"seed": 1}'), other)


def test_a_commit_that_is_not_here_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NoHistory, match=r"no commit nowhere here.*fetch a depth of 2"):
        check_out("nowhere", tmp_path / "before")


def test_a_commit_s_code_is_written_to_a_folder_of_its_own(tmp_path: Path) -> None:
    try:
        folder = check_out("HEAD", tmp_path / "before")
    except NoHistory as reason:
        pytest.skip(str(reason))
    assert (folder / "worker" / "__main__.py").exists()
