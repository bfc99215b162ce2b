"""What the options of every network have: the picture that it is for, and how they are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

# L, LA, RGB and RGBA
MOST_CHANNELS = 4
_LONGEST_SIDE = 2048
# far beyond any option of a network
_LARGEST_NUMBER = 10**9
_LONGEST_SHOWN = 60
_WIDEST = 8192
_DEEPEST = 12

Config = TypeVar("Config", bound="NetworkConfig")


class UnsupportedConfig(ValueError):
    """The configuration describes a network that none here is."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The picture that a network is for.

    Attributes:
        sample_size: The image's side in pixels, or height and width.
        in_channels: An image's channels.
        out_channels: As many, or twice as many if the network learned variances.
    """

    sample_size: int | tuple[int, int]
    in_channels: int = 3
    out_channels: int = 3

    @property
    def height(self) -> int:
        """An image's height in pixels."""
        return self.sample_size if isinstance(self.sample_size, int) else self.sample_size[0]

    @property
    def width(self) -> int:
        """An image's width in pixels."""
        return self.sample_size if isinstance(self.sample_size, int) else self.sample_size[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        return self.in_channels, self.height, self.width

    @property
    def learns_variance(self) -> bool:
        """True if the network returns a variance for every value beside its estimate."""
        return self.out_channels == 2 * self.in_channels

    @property
    def is_conditional(self) -> bool:
        """True if the network takes a class label for each image."""
        return False

    def check_size(self, halvings: int) -> None:
        """Refuse a picture that is too large, or cannot be halved so often.

        Raises:
            UnsupportedConfig: It is.
        """
        for side in (self.height, self.width):
            if not 1 <= side <= _LONGEST_SIDE:
                raise UnsupportedConfig(
                    f"sample_size={self.sample_size}; give 1 to {_LONGEST_SIDE}"
                )
            if side % 2**halvings:
                raise UnsupportedConfig(
                    f"sample_size={self.sample_size} cannot be halved {halvings} times;"
                    f" use a multiple of {2**halvings}"
                )

    def check_channels(self) -> None:
        """Refuse channels that make no picture.

        Raises:
            UnsupportedConfig: They make none.
        """
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise UnsupportedConfig(
                f"in_channels={self.in_channels}, out_channels={self.out_channels}: the network"
                " takes more than a picture, or returns another one;"
                f" only {self.in_channels} channels out, or {2 * self.in_channels} with learned"
                " variances, can be sampled"
            )
        if not 1 <= self.in_channels <= MOST_CHANNELS:
            raise UnsupportedConfig(
                f"in_channels={self.in_channels} make no picture; only 1 (grey), 2 (grey with"
                " alpha), 3 (RGB) and 4 (RGBA) do"
            )


def shown(value: object) -> str:
    """Write a value of a file into an error, shortened where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 10]}..."


def check_widths(widths: tuple[int, ...], key: str = "block_out_channels") -> None:
    """Refuse too many levels, and levels of too many channels.

    Args:
        widths: Channels of each level.
        key: The key that they come from.

    Raises:
        UnsupportedConfig: There are.
    """
    if not 1 <= len(widths) <= _DEEPEST:
        raise UnsupportedConfig(f"{key} holds {len(widths)} widths; give 1 to {_DEEPEST}")
    for width in widths:
        if not 1 <= width <= _WIDEST:
            raise UnsupportedConfig(f"{key} holds {width}; give 1 to {_WIDEST} channels")


def read_options(
    cls: type[Config],
    config: Mapping[str, Any],
    size: tuple[int, int] | None,
    ignored: Collection[str] = (),
) -> Config:
    """Read a network's options from the content of config.json.

    Args:
        cls: The class of the options.
        config: The content. Keys that begin with an underscore are passed over.
        size: Height and width of a network whose `sample_size` is null.
        ignored: Keys that are passed over.

    Raises:
        UnsupportedConfig: A key is unknown, or its value cannot be used.
    """
    known = {f.name for f in fields(cls)}
    for key, value in config.items():
        if not key.startswith("_") and key not in known and key not in ignored:
            raise UnsupportedConfig(
                f"unknown key {key}={shown(value)}; remove it or convert the checkpoint"
            )
        if key in known and _is_beyond(value):
            raise UnsupportedConfig(
                f"{key}={shown(value)} is too large; give at most {_LARGEST_NUMBER:,}"
            )
    given = {k: v for k, v in config.items() if k in known}
    try:
        return TypeAdapter(cls).validate_python(
            {**given, "sample_size": _size_of(config.get("sample_size"), size)}
        )
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        # without a key, the text is from __post_init__
        text = fault["msg"].removeprefix("Value error, ")
        if key:
            text = f"{key}={shown(fault['input'])}: {fault['msg']}"
        raise UnsupportedConfig(text) from None


def _is_beyond(value: object) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(one, int) and abs(one) > _LARGEST_NUMBER for one in numbers)


def _size_of(stated: Any, size: tuple[int, int] | None) -> int | tuple[int, int]:
    """Read `sample_size`, a side or height and width; null is the `size` given beside it."""
    if stated is None and size is not None:
        return size[0] if size[0] == size[1] else size
    if isinstance(stated, int) and not isinstance(stated, bool):
        return stated
    if isinstance(stated, list | tuple) and len(stated) == 2:
        height, width = stated
        if all(isinstance(side, int) and not isinstance(side, bool) for side in stated):
            return height if height == width else (height, width)
    raise UnsupportedConfig(
        f"sample_size={shown(stated)}; give the image's side in pixels, or height and width"
        + (" (`ddpm models add` takes --size)" if stated is None else "")
    )
