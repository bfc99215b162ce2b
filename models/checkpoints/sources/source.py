"""A model as somebody brings it, made ready to be described and copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """A folder that `diffusers_format.describe` reads, and how it came to be.

    Attributes:
        folder: The folder: the one that was given, or one in which the files were put together.
        origin: What was given, for people to read.
        provenance: How the weights came to be, as far as it is known.
        notes: What was chosen, changed or assumed on the way, a sentence each.
        ignored: Names of files that were left out.
        licence: The licence that the source states. None: it states none.
        shown: Parts of an error's text with what stands there instead, as nobody knows the folder
            in which files were put together.
    """

    folder: Path
    origin: str
    provenance: str
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    licence: str | None = None
    shown: Mapping[str, str] = field(default_factory=dict)

    def in_words(self, text: str) -> str:
        """Name the files that were given in a text, not the ones that were put together."""
        for ours, theirs in self.shown.items():
            text = text.replace(ours, theirs)
        return text
