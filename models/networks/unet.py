"""eps_theta: the U-Net of the paper (appendix B), in all variants of diffusers' `UNet2DModel`.

Shapes: B batch, C channels, H height, W width, F time features (one column per residual channel, or
two where they scale and shift).
Parameters have the names of diffusers' checkpoint format, so that a state dict loads as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.embeddings import Embedding, class_embedding, projection
from models.networks.layers import ActivatedNorm, Attention, ResidualBlock, activate
from models.networks.levels import DownLevel, Middle, SkipDownLevel, SkipUpLevel, UpLevel
from models.networks.network import DenoisingNetwork
from models.networks.unet_config import UNetConfig


class UNet(DenoisingNetwork):
    """The network of `UNet2DModel`."""

    cfg: UNetConfig

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        widths = cfg.block_out_channels
        self.conv_in = nn.Conv2d(cfg.in_channels, widths[0], 3, padding=1)
        self.time_proj = projection(cfg)
        self.time_embedding = Embedding(self.time_proj.width, cfg.time_width)
        self.class_embedding = class_embedding(cfg, self.time_proj.width)
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        c = widths[0]
        for i, (width, kind) in enumerate(zip(widths, cfg.down_kinds, strict=True)):
            pairs = [(c if j == 0 else width, width) for j in range(cfg.layers_per_block)]
            last = i == len(widths) - 1
            level = SkipDownLevel if kind.skip else DownLevel
            self.down_blocks.append(level(pairs, kind, cfg, last))
            skips += [width] * (cfg.layers_per_block + (not last))
            c = width
        self.mid_block = None if cfg.mid_block_type is None else Middle(c, cfg)
        self.up_blocks = nn.ModuleList()
        for i, (width, kind) in enumerate(zip(reversed(widths), cfg.up_kinds, strict=True)):
            last = i == len(widths) - 1
            skipped = [skips.pop() for _ in range(cfg.layers_per_block + 1)]
            pairs = [(c + skipped[0], width), *((width + skip, width) for skip in skipped[1:])]
            self.up_blocks.append(
                SkipUpLevel(pairs, kind, cfg, last, skipped)
                if kind.skip
                else UpLevel(pairs, kind, cfg, last)
            )
            c = width
        self.conv_norm_out = ActivatedNorm(cfg.groups(widths[0]), widths[0], cfg.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], cfg.out_channels, 3, padding=1)
        self._lay_out_time_features()
        self._initialise()

    def _lay_out_time_features(self) -> None:
        start = 0
        for block in self.residual_blocks:
            block.columns = slice(start, start + block.time_emb_proj.out_features)
            start = block.columns.stop

    @torch.no_grad()
    def _initialise(self) -> None:
        """Set weights to Glorot uniform values, and biases to zero.

        The last layer of every residual branch, and of the network, starts at zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for block in self.residual_blocks:
            block.conv2.weight.zero_()
        for module in self.modules():
            if isinstance(module, Attention):
                module.to_out[0].get_parameter("weight").zero_()
        self.conv_out.weight.zero_()

    @property
    def residual_blocks(self) -> list[ResidualBlock]:
        """All residual blocks, in the order of their time features."""
        return [m for m in self.modules() if isinstance(m, ResidualBlock)]

    def time_features(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute what the residual blocks see of the timestep, and of the class.

        Without classes it depends on t alone. So a server computes a table of it once, for all T,
        and no thin matrix product is left in a step.

        Args:
            t: int (B,).
            labels: What a conditional network takes: int (B,), or vectors (B, time width) if its
                embedding of classes is the identity.

        Returns:
            float (B, F).

        Raises:
            ValueError: Labels are missing, or the network takes none.
        """
        if (labels is None) != (self.class_embedding is None):
            raise ValueError(
                "the network takes a class label for each image; give labels"
                if labels is None
                else "the network takes no class labels; leave them out"
            )
        temb = self.embed_times(t)
        if labels is not None:
            temb = temb + self.embed_classes(labels)
        temb = activate(temb, self.cfg.activation)
        return torch.cat([block.time_emb_proj(temb) for block in self.residual_blocks], dim=1)

    def embed_times(self, t: Tensor) -> Tensor:
        """Embed timesteps: t int (B,) -> float (B, time width)."""
        embedded: Tensor = self.time_embedding(self.time_proj(t))
        return embedded

    def embed_classes(self, labels: Tensor) -> Tensor:
        """Embed class labels, as `time_features` takes them: float (B, time width).

        Raises:
            ValueError: The network takes none.
        """
        if self.class_embedding is None:
            raise ValueError("the network takes no class labels; leave them out")
        if self.cfg.class_embed_type == "timestep":
            labels = self.time_proj(labels)
        embedded: Tensor = self.class_embedding(labels)
        return embedded

    def denoise(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the network on time features: x (B, C, H, W), features (B, F) -> (B, C', H, W).

        Networks that embed log t lack the division by t that `divide_by_t` does.
        """
        if self.cfg.center_input_sample:
            x = 2 * x - 1.0
        picture: Tensor | None = x
        h = self.conv_in(x)
        skips = [h]
        for down in self.down_blocks:
            if isinstance(down, SkipDownLevel):
                h, picture = down(h, skips, features, picture)
            else:
                h = down(h, skips, features)
        if self.mid_block is not None:
            h = self.mid_block(h, features)
        picture = None
        for up in self.up_blocks:
            if isinstance(up, SkipUpLevel):
                h, picture = up(h, skips, features, picture)
            else:
                h = up(h, skips, features)
        out: Tensor = self.conv_out(self.conv_norm_out(h))
        return out if picture is None else out + picture

    @property
    def divides_by_t(self) -> bool:
        """True if the network embeds log t, as such networks were trained with the division."""
        return self.cfg.time_embedding_type == "fourier"
