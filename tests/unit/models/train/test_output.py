"""The folder of a training run: which ones are refused."""

from __future__ import annotations

import pytest

from models.train.output import BadOutput, check_output


@pytest.mark.parametrize(
    ("out", "name", "data", "says"),
    [
        (
            ".",
            "flowers",
            "flowers",
            "lies where the run puts its model 'flowers'; name another --out, or card.name",
        ),
        (".", "flowers", "flowers/red", "lies where the run puts its model 'flowers'"),
        (".", "roses", ".export/flowers", "lies where the run puts its model 'roses'"),
        (
            ".",
            "notes",
            "flowers",
            "notes is where the model goes, and holds no card.json; move what is there",
        ),
        (
            "flowers",
            "roses",
            "flowers",
            "lies in the data .*flowers, where the run's own pictures would be trained on",
        ),
        ("flowers/red/../runs", "roses", "flowers", "lies in the data"),
        ("link/runs", "roses", "flowers", "lies in the data"),
        (
            ".",
            "loss.png",
            "flowers",
            "card.name='loss.png' may be a file of the run itself;"
            " give the model a name without .png",
        ),
        ("file", "roses", "flowers", "file is a file; name a folder with --out"),
    ],
)
def test_a_run_that_would_replace_foreign_files_or_train_on_its_own_is_refused(
    tmp_path, out, name, data, says
):
    for folder in ("flowers/red", "notes", ".export/flowers"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("flowers")
    with pytest.raises(BadOutput, match=says):
        check_output(tmp_path / out, name, tmp_path / data)


def test_a_run_may_write_next_to_its_data_and_over_its_own_model(tmp_path):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "roses").mkdir()
    (tmp_path / "roses" / "card.json").touch()
    check_output(tmp_path, "roses", tmp_path / "flowers")
    check_output(tmp_path / "runs" / "new", "roses", tmp_path / "flowers")
