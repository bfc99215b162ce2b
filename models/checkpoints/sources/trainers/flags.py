"""Flags of a training, as they stand in its command: `--image_size 64 --num_heads=4`."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from models.checkpoints.bad_checkpoint import BadCheckpoint

_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")


@dataclass(frozen=True, slots=True)
class Flags:
    """Values by the names of the flags, without their dashes."""

    given: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, known: Collection[str], owner: str) -> Flags:
        """Read flags.

        Args:
            text: The flags.
            known: Names that there are.
            owner: Whose flags they are, for the error.

        Raises:
            BadCheckpoint: One is unknown or has no value.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise BadCheckpoint(f"--flags cannot be read ({error})") from None
        pairs: dict[str, str] = {}
        while words:
            name, equals, value = words.pop(0).removeprefix("--").partition("=")
            if name not in known:
                raise BadCheckpoint(f"--flags hold {name!r}, which is no flag of {owner}")
            if not equals:
                if not words:
                    raise BadCheckpoint(f"--flags: --{name} has no value")
                value = words.pop(0)
            pairs[name] = value
        return cls(pairs)

    def number(self, name: str) -> int | None:
        """Read a whole number. None: it is not given, or not above 0.

        Raises:
            BadCheckpoint: It is no whole number.
        """
        text = self.given.get(name, "-1")
        if not text.removeprefix("-").isdecimal() or len(text) > 9:
            raise BadCheckpoint(f"--flags: --{name} {text} is no whole number of up to 9 digits")
        return int(text) if int(text) > 0 else None

    def truth(self, name: str, absent: bool = False) -> bool:
        """Read True or False.

        Raises:
            BadCheckpoint: It is neither.
        """
        text = self.given.get(name, str(absent)).lower()
        if text not in (*_TRUE, *_FALSE):
            raise BadCheckpoint(f"--flags: --{name} {text} is neither True nor False")
        return text in _TRUE
