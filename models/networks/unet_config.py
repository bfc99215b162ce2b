"""The options of diffusers' `UNet2DModel`, read from config.json and checked.

What this U-Net cannot be is refused by name. Two options are not among diffusers' own for this
network: `timestep_input_dim` and `num_attention_heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.networks.network_config import (
    NetworkConfig,
    UnsupportedConfig,
    check_widths,
    read_options,
    shown,
)

# What an average of weights keeps beside the network's options (diffusers' `EMAModel`).
EMA_KEYS = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
# What names the classes, which the model's card has.
_LABEL_KEYS = ("id2label", "label2id", "class_names", "labels")
Activation = Literal["silu", "mish", "gelu", "relu"]
# diffusers' names of activations
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "gelu": "gelu",
    "relu": "relu",
}
# far beyond what anybody trains on pixels
_LARGEST = {"layers_per_block": 64, "norm_num_groups": 8192}
# numbers of anything but channels of a level
_COUNTS = (
    "time_embedding_dim",
    "timestep_input_dim",
    "num_attention_heads",
    "num_class_embeds",
    "num_train_timesteps",
)
# options that diffusers' UNet2DModel lacks; where they are null they are not written
OUR_OPTIONS = ("timestep_input_dim", "num_attention_heads")
# the second is its name before diffusers 0.2
_CLASSES = ("UNet2DModel", "UNetUnconditionalModel")


@dataclass(frozen=True, slots=True)
class LevelKind:
    """What a block type of diffusers says of one resolution.

    Attributes:
        attention: Whether attention follows its residual blocks.
        sampling: Whether a convolution or a residual block halves or doubles the sides, where the
            configuration does not choose. None: it chooses.
        skip: Whether it has the filtered side path of a StyleGAN2-like network.
    """

    attention: bool = False
    sampling: Literal["conv", "resnet"] | None = "conv"
    skip: bool = False


_DOWN = {
    "DownBlock2D": LevelKind(),
    "AttnDownBlock2D": LevelKind(attention=True, sampling=None),
    "ResnetDownsampleBlock2D": LevelKind(sampling="resnet"),
    "SkipDownBlock2D": LevelKind(sampling="resnet", skip=True),
    "AttnSkipDownBlock2D": LevelKind(attention=True, sampling="resnet", skip=True),
}
_UP = {
    "UpBlock2D": LevelKind(),
    "AttnUpBlock2D": LevelKind(attention=True, sampling=None),
    "ResnetUpsampleBlock2D": LevelKind(sampling="resnet"),
    "SkipUpBlock2D": LevelKind(sampling="resnet", skip=True),
    "AttnSkipUpBlock2D": LevelKind(attention=True, sampling="resnet", skip=True),
}
# of the picture that the side path carries along
SKIP_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class UNetConfig(NetworkConfig):
    """The options of `UNet2DModel`, with diffusers' names and defaults.

    Options that make no network raise UnsupportedConfig.

    Attributes:
        timestep_input_dim: Numbers that a timestep is turned into; None: as many as the first level
            has channels. diffusers lacks the option, which guided-diffusion's network for 512
            pixels needs.
        num_attention_heads: Heads of every attention, in place of `attention_head_dim`, which is
            None then. diffusers' conditional networks have the option. improved-diffusion's
            networks for ImageNet need it, as they attend at several widths.
    """

    center_input_sample: bool = False
    time_embedding_type: Literal["positional", "fourier", "learned"] = "positional"
    time_embedding_dim: int | None = None
    timestep_input_dim: int | None = None
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: Literal["conv", "resnet"] | None = "conv"
    upsample_type: Literal["conv", "resnet"] | None = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    num_attention_heads: int | None = None
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: Literal["timestep", "identity"] | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= largest:
                raise UnsupportedConfig(f"{name}={value}; give 1 to {largest}")
        check_widths(self.block_out_channels)
        levels = len(self.block_out_channels)
        self._check_numbers()
        self._check_embeddings()
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            blocks = getattr(self, name)
            if len(blocks) != levels:
                raise UnsupportedConfig(
                    f"{name} names {len(blocks)} levels, block_out_channels {levels}; give one each"
                )
            for block in blocks:
                if _plain(block) not in known:
                    raise UnsupportedConfig(
                        f"{name} holds {shown(block)}; this U-Net has {', '.join(known)}"
                    )
        self.check_size(levels - 1)
        self.check_channels()
        self._check_skips()
        self._check_groups()
        self._check_heads()

    def _check_heads(self) -> None:
        """Refuse heads of attention that do not fit the channels."""
        width, heads = self.attention_head_dim, self.num_attention_heads
        if width is not None and heads is not None:
            raise UnsupportedConfig(
                f"attention_head_dim={width} and num_attention_heads={heads} say the same in two"
                " ways; make one of them null"
            )
        for channels in self._attending_widths():
            if width is not None and not 1 <= width <= channels:
                raise UnsupportedConfig(
                    f"attention_head_dim={width} leaves no head of {channels} channels;"
                    f" give 1 to {channels}, or null for one head"
                )
            if heads is not None:
                divide(channels, heads, "num_attention_heads")

    def _check_numbers(self) -> None:
        """Refuse numbers with which the network would not run, or would return NaN."""
        if self.downsample_padding not in (0, 1):
            raise UnsupportedConfig(
                f"downsample_padding={self.downsample_padding} is not supported; only 0 and 1 are"
            )
        if not 0 <= self.dropout < 1:
            raise UnsupportedConfig(f"dropout={self.dropout}; give 0 or more, and less than 1")
        if not 1e-12 <= self.norm_eps <= 1:
            raise UnsupportedConfig(f"norm_eps={self.norm_eps}; give 1e-12 to 1")
        if not 1e-6 <= abs(self.mid_block_scale_factor) <= 1e6:
            raise UnsupportedConfig(
                f"mid_block_scale_factor={self.mid_block_scale_factor} divides the middle block's"
                " output; give 1e-6 to 1e6"
            )
        if self.act_fn.lower() not in _ACTIVATIONS:
            raise UnsupportedConfig(
                f"act_fn={shown(self.act_fn)} is not supported; use {', '.join(_ACTIVATIONS)}"
            )

    def _check_embeddings(self) -> None:
        """Refuse embeddings of the timestep and of classes that would not run."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 10**6:
                raise UnsupportedConfig(f"{name}={value}; give 1 to 1000000, or null")
        stated = self.timestep_input_dim
        if stated is not None and self.time_embedding_type == "fourier":
            raise UnsupportedConfig(
                f"timestep_input_dim={stated} does not fit time_embedding_type='fourier', which"
                " takes two numbers for each channel of the first level; leave it out"
            )
        half = self.timestep_width // 2
        if half < 1:
            named = "timestep_input_dim is 1" if stated else "block_out_channels begins with 1"
            raise UnsupportedConfig(f"{named}; give 2 channels or more")
        if self.time_embedding_type == "positional" and not self.freq_shift < half:
            raise UnsupportedConfig(
                f"freq_shift={self.freq_shift} does not fit the {half} frequencies of t;"
                f" give less than {half}"
            )
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise UnsupportedConfig(
                "time_embedding_type='learned' needs num_train_timesteps, which is null"
            )

    def _check_skips(self) -> None:
        """Refuse side paths whose picture would be of another size than where it is added."""
        down = [kind.skip for kind in self.down_kinds]
        up = [kind.skip for kind in self.up_kinds]
        if not any(down + up):
            return
        if self.in_channels != SKIP_CHANNELS or self.out_channels != SKIP_CHANNELS:
            raise UnsupportedConfig(
                f"in_channels={self.in_channels}, out_channels={self.out_channels}: skip blocks"
                " carry a picture of 3 channels; use 3 and 3"
            )
        if any(skip and not all(down[:i]) for i, skip in enumerate(down[:-1])):
            raise UnsupportedConfig(
                "down_block_types holds a skip block below one that is none, so that its picture"
                " is too large; put the skip blocks first"
            )
        if True in up and not all(up[up.index(True) :]):
            raise UnsupportedConfig(
                "up_block_types holds a block that is no skip block above one that is, so that the"
                " picture stays too small; put the skip blocks last"
            )

    def _check_groups(self) -> None:
        """Refuse groups that do not divide the channels that they normalise."""
        groups = self.norm_num_groups
        plain = [
            width
            for widths, kinds in (
                (self.block_out_channels, self.down_kinds),
                (self.block_out_channels[::-1], self.up_kinds),
            )
            for width, kind in zip(widths, kinds, strict=True)
            if not kind.skip
        ]
        if groups is None and plain:
            raise UnsupportedConfig(
                "norm_num_groups=null is for networks of skip blocks only; give a number"
            )
        checked = [*plain, self.block_out_channels[0]]
        if self.mid_block_type is not None:
            checked.append(self.block_out_channels[-1])
        for width in checked:
            divide(width, self.groups(width), "norm_num_groups")
        if self.mid_block_type is not None and self.add_attention and self.attn_norm_num_groups:
            divide(self.block_out_channels[-1], self.attn_norm_num_groups, "attn_norm_num_groups")
        if self.attn_norm_num_groups is not None and self.attn_norm_num_groups < 1:
            raise UnsupportedConfig(f"attn_norm_num_groups={self.attn_norm_num_groups}; give 1 up")

    @classmethod
    def from_diffusers(
        cls, config: Mapping[str, Any], size: tuple[int, int] | None = None
    ) -> UNetConfig:
        """Read the options from the content of config.json.

        Args:
            config: The content. What an average of weights adds to it is ignored (EMA_KEYS),
                and so are names of classes.
            size: Height and width of a network whose `sample_size` is null.

        Raises:
            UnsupportedConfig: The network is not supported. The text names the key, its value and
                what is supported.
        """
        if config.get("_class_name", "UNet2DModel") not in _CLASSES:
            raise UnsupportedConfig(
                f"_class_name={shown(config['_class_name'])}; this loader reads UNet2DModel"
            )
        return read_options(cls, config, size, {*EMA_KEYS, *_LABEL_KEYS})

    def to_diffusers(self) -> dict[str, Any]:
        """Make the config.json from which diffusers reads the same network.

        diffusers refuses the weights of a network with a `timestep_input_dim` by their shape. It
        does not know `num_attention_heads` of this network, and warns of it.
        """
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        for name in OUR_OPTIONS:
            if options[name] is None:
                del options[name]
        return {"_class_name": "UNet2DModel", "_diffusers_version": "0.35.0", **options}

    @property
    def is_conditional(self) -> bool:
        """True if the network takes a class label for each image."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def activation(self) -> Activation:
        """The activation of residual blocks."""
        return _ACTIVATIONS[self.act_fn.lower()]

    @property
    def down_kinds(self) -> tuple[LevelKind, ...]:
        """What each level on the way down is."""
        return tuple(_DOWN[_plain(block)] for block in self.down_block_types)

    @property
    def up_kinds(self) -> tuple[LevelKind, ...]:
        """What each level on the way up is."""
        return tuple(_UP[_plain(block)] for block in self.up_block_types)

    def _attending_widths(self) -> set[int]:
        """Collect the channels of all levels with attention; the middle has the last one's."""
        widths = self.block_out_channels
        down = zip(widths, self.down_kinds, strict=True)
        up = zip(reversed(widths), self.up_kinds, strict=True)
        attending = {width for width, kind in (*down, *up) if kind.attention}
        if self.add_attention and self.mid_block_type is not None:
            attending.add(widths[-1])
        return attending

    @property
    def timestep_width(self) -> int:
        """Count the numbers that a timestep is turned into."""
        if self.time_embedding_type == "fourier":
            return 2 * self.block_out_channels[0]
        return self.timestep_input_dim or self.block_out_channels[0]

    @property
    def time_width(self) -> int:
        """Channels of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    def groups(self, channels: int) -> int:
        """Count the groups that normalise so many channels, but for those of skip blocks."""
        return self.norm_num_groups or skip_groups(channels)

    def heads(self, channels: int) -> int:
        """Count the heads of attention over so many channels."""
        if self.attention_head_dim is None:
            return self.num_attention_heads or 1
        return channels // self.attention_head_dim

    def head_width(self, channels: int) -> int:
        """Count the channels of a head. Heads that do not divide the channels leave some out."""
        return self.attention_head_dim or max(1, channels // self.heads(channels))


def skip_groups(channels: int) -> int:
    """Count the groups that normalise so many channels of a skip block."""
    return min(channels // 4, 32)


def divide(channels: int, groups: int, key: str) -> None:
    """Check that groups divide channels.

    Raises:
        UnsupportedConfig: They do not. The text names the key that the groups come from.
    """
    if groups < 1 or channels % groups:
        raise UnsupportedConfig(f"{key}={groups} does not divide {channels} channels")


def _plain(block: str) -> str:
    """Take off the prefix that block types had before diffusers 0.3."""
    return block.removeprefix("UNetRes")
