"""What the storm judges by, and what it takes the commit before from."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.chaos.commit_before import NoHistory, check_out
from tests.chaos.storm import PLANNED
from tests.chaos.verdict import Verdict, is_same_picture


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


def verdict(*, computed: int, kills: int) -> Verdict:
    """Return one on 1000 image-steps that took 10 s in peace."""
    return Verdict(
        seed=1,
        undisturbed=(),
        stormy=(),
        happened=PLANNED + Counter({"kill worker": kills}),
        setbacks=Counter(),
        needed=1000,
        peaceful=1000,
        computed=computed,
        peace_s=10.0,
        storm_s=20.0,
        left=(),
    )


def test_a_loss_is_judged_by_seconds_of_the_fleet_whatever_the_number_of_kills() -> None:
    calm, wild = verdict(computed=1190, kills=1), verdict(computed=1950, kills=9)
    assert [calm.lost_s, wild.lost_s] == pytest.approx([0.95, 0.95])
    assert not [fault for fault in (*calm.faults(), *wild.faults()) if "cost" in fault]
    (lost,) = [fault for fault in verdict(computed=1210, kills=1).faults() if "cost" in fault]
    assert lost == "the loss of a worker cost 1.05 s of the fleet's work"


def test_a_storm_says_the_share_that_was_computed_twice_where_it_is_bounded() -> None:
    faults = verdict(computed=1110, kills=9).faults(twice_at_most=0.1)
    assert "11.0% of the image-steps were computed twice" in faults
