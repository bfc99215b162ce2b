"""Scratch folders of processes that live, and of those that were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from models.checkpoints.added.scratch import remove_ownerless, scratch_folder

HOLD = """
import sys, time
from pathlib import Path
from models.checkpoints.added.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "half").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_scratch_of_a_killed_process_goes_and_of_a_living_one_stays(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip())
    try:
        assert remove_ownerless(tmp_path) == []
        assert (folder / "half").is_dir()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert remove_ownerless(tmp_path) == [folder]
    assert list(tmp_path.iterdir()) == []
    holder.stdout.close()


def test_a_scratch_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        assert remove_ownerless(tmp_path) == []
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_models_is_no_scratch_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / ".kept" / ".removing-old").mkdir(parents=True)
    assert remove_ownerless(tmp_path) == [tmp_path / ".kept" / ".removing-old"]
    assert (tmp_path / "model").is_dir()
