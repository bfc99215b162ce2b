"""The few forms of Markdown that the generated pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

NOTICE = (
    "<!-- Made from the code by `make docs-reference`. "
    "A test compares the two: change the code, then run it. -->"
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or nothing without rows. It leaves out columns without a text."""
    cells = [[_cell(text) for text in row] for row in rows]
    used = [i for i in range(len(head)) if any(row[i] for row in cells)]
    lines = [
        [head[i] for i in used],
        ["---"] * len(used),
        *([row[i] for i in used] for row in cells),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if cells else ""


def page(blocks: Iterable[str]) -> str:
    """Join the blocks that are not empty, with a blank line between them."""
    return "\n\n".join(block for block in blocks if block) + "\n"


def plain(text: str) -> str:
    """Return text in which nothing outside of `code` is taken for a tag."""
    return "`".join(
        part if code else part.replace("<", "\\<")
        for code, part in zip(cycle((False, True)), text.split("`"))
    )


def _cell(text: str) -> str:
    return plain(" ".join(text.split())).replace("|", "\\|")
