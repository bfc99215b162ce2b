"""The options of the U-Net of `denoising-diffusion-pytorch`, as config.json of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from models.networks.network_config import (
    NetworkConfig,
    UnsupportedConfig,
    check_widths,
    read_options,
)

# what config.json calls the network
LINEAR_ATTENTION = "LinearAttentionUNet"
_MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class LinearAttentionConfig(NetworkConfig):
    """The options of a `LinearAttentionUNet`. Tuples have one entry for each level.

    Attributes:
        base_channels: Channels of the sinusoids of t; its embedding has four times as many.
        stem_channels: Channels of the first convolution.
        block_out_channels: Channels that each level passes on.
        full_attention: Whether a level attends by softmax, or by linear attention.
        attention_heads: Heads of each level's attention.
        attention_head_dim: Channels of a head.
        memory_tokens: Learned keys and values that every position attends to.
        norm_num_groups: Groups of a block's norms. None: RMS norms.
        theta: The longest period of the sinusoids, in units of 2 pi.
    """

    base_channels: int = 64
    stem_channels: int = 64
    block_out_channels: tuple[int, ...] = (64, 128, 256, 512)
    full_attention: tuple[bool, ...] = (False, False, False, True)
    attention_heads: tuple[int, ...] = (4, 4, 4, 4)
    attention_head_dim: tuple[int, ...] = (32, 32, 32, 32)
    memory_tokens: int = 4
    norm_num_groups: int | None = None
    theta: float = 10000

    def __post_init__(self) -> None:
        check_widths(self.block_out_channels)
        check_widths((self.stem_channels,), "stem_channels")
        levels = len(self.block_out_channels)
        for name in ("full_attention", "attention_heads", "attention_head_dim"):
            given = asdict(self)[name]
            if len(given) != levels:
                raise UnsupportedConfig(
                    f"{name} names {len(given)} levels, block_out_channels {levels}; give one each"
                )
        for heads, width in zip(self.attention_heads, self.attention_head_dim, strict=True):
            if not (1 <= heads <= 1024 and 1 <= width <= 1024):
                raise UnsupportedConfig(f"{heads} heads of {width} channels; give 1 to 1024 each")
        if self.base_channels % 2 or not 4 <= self.base_channels <= 8192:
            raise UnsupportedConfig(
                f"base_channels={self.base_channels}; give an even number from 4 to 8192"
            )
        if not 0 <= self.memory_tokens <= _MOST_TOKENS:
            raise UnsupportedConfig(f"memory_tokens={self.memory_tokens}; give 0 to {_MOST_TOKENS}")
        if not 1 < self.theta <= 1e9:
            raise UnsupportedConfig(f"theta={self.theta}; give more than 1, up to 1e9")
        self.check_size(levels - 1)
        self.check_channels()
        for width in (self.stem_channels, *self.block_out_channels):
            groups = self.norm_num_groups
            if groups is not None and (groups < 1 or width % groups):
                raise UnsupportedConfig(
                    f"norm_num_groups={groups} does not divide {width} channels"
                )

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], size: tuple[int, int] | None = None
    ) -> LinearAttentionConfig:
        """Read the options from the content of config.json.

        Args:
            config: The content.
            size: Height and width of a network whose `sample_size` is null.

        Raises:
            UnsupportedConfig: There is no such network. The text names the key and its value.
        """
        return read_options(cls, config, size)

    def to_json(self) -> dict[str, Any]:
        """Make the content of config.json."""
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"_class_name": LINEAR_ATTENTION, **options}
