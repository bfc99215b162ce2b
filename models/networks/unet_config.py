"""The options of diffusers' `UNet2DModel` that the U-Net has, read from config.json and checked.

Options that this U-Net does not have are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

# The options that this U-Net has in one value only, which is also the default of diffusers.
_FIXED: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_DOWN = {"DownBlock2D": False, "AttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "AttnUpBlock2D": True}
# far beyond what anybody trains on pixels
_LARGEST = {"sample_size": 2048, "layers_per_block": 64, "norm_num_groups": 8192}
_WIDEST = 8192
_DEEPEST = 12


class UnsupportedConfig(ValueError):
    """The configuration describes a network that this U-Net is not."""


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The options of `UNet2DModel` that this U-Net has, with diffusers' names and defaults.

    Options that make no network raise UnsupportedConfig.
    """

    sample_size: int
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    attention_head_dim: int | None = 8
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    norm_eps: float = 1e-5
    norm_num_groups: int = 32
    dropout: float = 0.0
    add_attention: bool = True

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise UnsupportedConfig(f"{name}={getattr(self, name)}; give 1 to {largest}")
        levels = len(self.block_out_channels)
        if not 1 <= levels <= _DEEPEST:
            raise UnsupportedConfig(
                f"block_out_channels holds {levels} widths; give 1 to {_DEEPEST}"
            )
        for width in self.block_out_channels:
            if not 1 <= width <= _WIDEST:
                raise UnsupportedConfig(
                    f"block_out_channels holds {width}; give 1 to {_WIDEST} channels"
                )
        self._check_numbers()
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            blocks = getattr(self, name)
            if len(blocks) != levels:
                raise UnsupportedConfig(
                    f"{name} names {len(blocks)} levels, block_out_channels {levels}; give one each"
                )
            for block in blocks:
                if block not in known:
                    raise UnsupportedConfig(
                        f"{name} holds {block!r}; this U-Net has {', '.join(known)}"
                    )
        if self.sample_size % 2 ** (levels - 1):
            raise UnsupportedConfig(
                f"sample_size={self.sample_size} cannot be halved {levels - 1} times;"
                f" use a multiple of {2 ** (levels - 1)}"
            )
        if self.in_channels != self.out_channels:
            raise UnsupportedConfig(
                f"out_channels={self.out_channels} differs from in_channels={self.in_channels};"
                " learned variances are unsupported"
            )
        if self.in_channels not in (1, 3):
            raise UnsupportedConfig(
                f"in_channels={self.in_channels} make no picture;"
                " only 1 (grey) and 3 (RGB) are supported"
            )
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise UnsupportedConfig(
                    f"norm_num_groups={self.norm_num_groups} does not divide {width} channels"
                )
        head = self.attention_head_dim
        for width in self._attending_widths():
            if head is not None and (head < 1 or width % head):
                raise UnsupportedConfig(
                    f"attention_head_dim={head} does not divide {width} channels"
                )

    def _check_numbers(self) -> None:
        """Refuse numbers with which the network would not run, or would return NaN."""
        half = self.block_out_channels[0] // 2
        if self.block_out_channels[0] % 2:
            raise UnsupportedConfig(
                f"block_out_channels begins with {self.block_out_channels[0]}; give an even number"
            )
        if not 0 <= self.freq_shift < half:
            raise UnsupportedConfig(
                f"freq_shift={self.freq_shift} does not fit the {half} frequencies of t;"
                f" give 0 to {half - 1}"
            )
        if self.downsample_padding not in (0, 1):
            raise UnsupportedConfig(
                f"downsample_padding={self.downsample_padding} is not supported; only 0 and 1 are"
            )
        if not 0 <= self.dropout < 1:
            raise UnsupportedConfig(f"dropout={self.dropout}; give 0 or more, and less than 1")
        if not 1e-12 <= self.norm_eps <= 1:
            raise UnsupportedConfig(f"norm_eps={self.norm_eps}; give 1e-12 to 1")

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Read the options from the content of config.json.

        Raises:
            UnsupportedConfig: The network is not supported. The text names the key, its value and
                what is supported.
        """
        if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
            raise UnsupportedConfig(
                f"_class_name={config['_class_name']!r}; this loader reads UNet2DModel"
            )
        known = {f.name for f in fields(cls)}
        for key, value in config.items():
            if key.startswith("_") or key in known:
                continue
            if key not in _FIXED:
                raise UnsupportedConfig(
                    f"unknown key {key}={value!r}; remove it or convert the checkpoint"
                )
            if value != _FIXED[key]:
                raise UnsupportedConfig(
                    f"{key}={value!r} is not supported; only {_FIXED[key]!r} is"
                )
        size = config.get("sample_size")
        if isinstance(size, list | tuple) and size:
            if any(side != size[0] for side in size):
                raise UnsupportedConfig(
                    f"sample_size={list(size)} is not square; only square images are supported"
                )
            size = size[0]
        if not isinstance(size, int):
            raise UnsupportedConfig(f"sample_size={size!r}; give the image's side in pixels")
        given = {k: v for k, v in config.items() if k in known}
        try:
            return TypeAdapter(cls).validate_python({**given, "sample_size": size})
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            # without a key, the text is from __post_init__
            text = fault["msg"].removeprefix("Value error, ")
            if key:
                text = f"{key}={fault['input']!r}: {fault['msg']}"
            raise UnsupportedConfig(text) from None

    def to_diffusers(self) -> dict[str, Any]:
        """Make the config.json from which diffusers reads the same network."""
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"_class_name": "UNet2DModel", "_diffusers_version": "0.35.0", **_FIXED, **options}

    @property
    def down_attention(self) -> tuple[bool, ...]:
        """True for each level on the way down that has attention."""
        return tuple(_DOWN[b] for b in self.down_block_types)

    @property
    def up_attention(self) -> tuple[bool, ...]:
        """True for each level on the way up that has attention."""
        return tuple(_UP[b] for b in self.up_block_types)

    def _attending_widths(self) -> set[int]:
        """Collect the channels of all levels with attention; the middle has the last one's."""
        widths = self.block_out_channels
        down = zip(widths, self.down_attention, strict=True)
        up = zip(reversed(widths), self.up_attention, strict=True)
        middle = (widths[-1], self.add_attention)
        return {width for width, attends in (*down, *up, middle) if attends}

    @property
    def time_width(self) -> int:
        """Channels of the time embedding."""
        return 4 * self.block_out_channels[0]

    def heads(self, channels: int) -> int:
        """Count the heads of attention over so many channels."""
        return 1 if self.attention_head_dim is None else channels // self.attention_head_dim
