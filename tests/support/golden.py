"""Golden files: what the service has shown to others so far. WRITE_GOLDEN=1 writes them anew.

WRITE_GOLDEN=1 .venv/bin/pytest tests/contract
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
_MOST_LINES = 200  # of a difference that is shown
_MOST_LEVELS = 1  # of grey: CPUs differ in the last bits of what a network says


def assert_golden(name: str, value: Any) -> None:
    """What JSON makes of `value` is what the file holds, to the letter."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if _WRITING:
        _write(name, text.encode())
    kept = (FOLDER / name).read_text(encoding="utf-8")
    if text == kept:
        return
    lines = kept.splitlines(), text.splitlines()
    difference = list(difflib.unified_diff(*lines, f"golden/{name}", "now", lineterm=""))
    left_out = len(difference) - _MOST_LINES
    shown = difference[:_MOST_LINES] + ([f"... {left_out} lines more"] if left_out > 0 else [])
    pytest.fail("\n".join(shown), pytrace=False)


def assert_golden_pictures(pngs: dict[str, bytes]) -> None:
    """Of each the size and the texts are those of the file, and its grey levels nearly are."""
    if _WRITING:
        for name, png in pngs.items():
            _write(name, png)
    found = {name: _unlike((FOLDER / name).read_bytes(), png) for name, png in pngs.items()}
    if unlike := [f"golden/{name}: {said}" for name, said in found.items() if said]:
        pytest.fail("\n".join(unlike), pytrace=False)


def _unlike(kept: bytes, now: bytes) -> str:
    """How the two pictures differ; empty where they do not."""
    before, after = (Image.open(io.BytesIO(png)) for png in (kept, now))
    if (before.mode, before.size) != (after.mode, after.size):
        return f"was {before.mode} of {before.size}, now it is {after.mode} of {after.size}"
    texts = [_texts(picture) for picture in (before, after)]
    if texts[0] != texts[1]:
        return f"said {texts[0]}, now it says {texts[1]}"
    levels = np.abs(np.asarray(before, np.int16) - np.asarray(after, np.int16))
    if levels.max() > _MOST_LEVELS:
        return f"{(levels > _MOST_LEVELS).sum()} values differ, by {levels.max()} grey levels"
    return ""


def _texts(picture: Any) -> dict[str, Any]:
    return {key: json.loads(text) for key, text in picture.text.items()}


def _write(name: str, content: bytes) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_bytes(content)
