"""Golden files: what the service has shown to others so far.

`WRITE_GOLDEN=1 .venv/bin/pytest tests/contract` writes them again.
"""

from __future__ import annotations

import difflib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "contract" / "golden"
_WRITING = os.environ.get("WRITE_GOLDEN") == "1"
# Lines of a difference that are shown.
_MOST_LINES = 200
# Grey levels that may differ, because CPUs differ in the last bits of a network's output.
_MOST_LEVELS = 1


def assert_golden(name: str, value: Any, folder: Path = FOLDER) -> None:
    """Assert that `value` as JSON is the text of the file, to the letter."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if _WRITING:
        (folder / name).write_text(text, encoding="utf-8")
    golden = (folder / name).read_text(encoding="utf-8")
    if text == golden:
        return
    before = golden.splitlines()
    after = text.splitlines()
    difference = list(
        difflib.unified_diff(before, after, f"{folder.name}/{name}", "now", lineterm="")
    )
    left_out = len(difference) - _MOST_LINES
    shown = difference[:_MOST_LINES] + ([f"... {left_out} lines more"] if left_out > 0 else [])
    pytest.fail("\n".join(shown), pytrace=False)


def assert_golden_pictures(pngs: dict[str, bytes]) -> None:
    """Assert that each PNG has the size and texts of its file, and nearly its grey levels."""
    if _WRITING:
        for name, png in pngs.items():
            _write(name, png)
    found = {name: _difference((FOLDER / name).read_bytes(), png) for name, png in pngs.items()}
    if differences := [f"golden/{name}: {fact}" for name, fact in found.items() if fact]:
        pytest.fail("\n".join(differences), pytrace=False)


def _difference(golden: bytes, now: bytes) -> str:
    """Describe how the two images differ; empty where they do not."""
    before = Image.open(io.BytesIO(golden))
    after = Image.open(io.BytesIO(now))
    if (before.mode, before.size) != (after.mode, after.size):
        return f"was {before.mode} of {before.size}, now it is {after.mode} of {after.size}"
    if _texts(before) != _texts(after):
        return f"said {_texts(before)}, now it says {_texts(after)}"
    levels = np.abs(np.asarray(before, np.int16) - np.asarray(after, np.int16))
    if levels.max() > _MOST_LEVELS:
        return f"{(levels > _MOST_LEVELS).sum()} values differ, by {levels.max()} grey levels"
    return ""


def _texts(image: Any) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in image.text.items()}


def _write(name: str, content: bytes) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_bytes(content)
