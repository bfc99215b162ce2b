"""What the residual blocks see of timestep and class, computed so that no batch changes its bits.

Shapes: B batch, T timesteps, F time features, E channels of the time embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.networks.layers import activate
from models.networks.network import DenoisingNetwork
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig


class TimeFeatures:
    """Features of a network without classes: a table over t, (T, F).

    The table saves time, and it keeps thin matrix products out of the step: these made batch sizes
    disagree in the last bit.
    """

    def __init__(
        self, net: DenoisingNetwork, T: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Compute the table from the network, in float32 on the CPU."""
        self.table = _by_one_thread(net.time_features, T).to(device, dtype)

    def __call__(self, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Look up t int64 (B,): (B, F)."""
        return self.table[t]


class ClassFeatures:
    """Features of a conditional network, whose activation stands between the sum and the products.

    A table over t and class would take their product of places: 24 GB for 1,000 of each. So there
    are two tables, of times (T, E) and of classes (rows, E). Their sum is one vector for each
    image, and the products take the images one by one. No image's bits depend on its batch then.

    The products are float32, as the table of `TimeFeatures` is.
    """

    def __init__(
        self, net: UNet, T: int, dtype: torch.dtype, device: torch.device, rows: int
    ) -> None:
        """Compute the tables from the network, in float32 on the CPU.

        Args:
            net: The network.
            T: Its timesteps.
            dtype: Of the features.
            device: Where they are computed.
            rows: Rows of its embedding of classes.
        """
        layers = [block.time_emb_proj for block in net.residual_blocks]
        self.times = _by_one_thread(net.embed_times, T).to(device)
        self.classes = _by_one_thread(net.embed_classes, rows).to(device)
        self.weight = torch.cat([layer.weight for layer in layers]).to(device)
        self.bias = torch.cat([layer.bias for layer in layers]).to(device)
        self._activation = net.cfg.activation
        self._dtype = dtype

    def __call__(self, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute the features of t int64 (B,) and rows of classes int64 (B,): (B, F)."""
        assert rows is not None
        embedded = activate(self.times[t] + self.classes[rows], self._activation)
        out = embedded.new_empty(len(embedded), len(self.weight))
        for features, image in zip(out, embedded, strict=True):
            torch.addmv(self.bias, self.weight, image, out=features)
        return out.to(self._dtype)


def features_of(
    net: DenoisingNetwork, T: int, dtype: torch.dtype, device: torch.device, class_rows: int
) -> TimeFeatures | ClassFeatures:
    """Make the features of a network, with classes if it has `class_rows` of them.

    Raises:
        ValueError: The network takes classes and has none, or has another number of them.
    """
    cfg = net.cfg
    known = None
    if isinstance(cfg, UNetConfig) and cfg.class_embed_type is None:
        known = cfg.num_class_embeds
    if cfg.is_conditional != bool(class_rows) or known not in (None, class_rows):
        raise ValueError(
            f"the card says {class_rows} rows of classes, and the network"
            f" {known or ('any' if cfg.is_conditional else 'none')};"
            " write the card anew with `ddpm models add`"
        )
    if class_rows and isinstance(net, UNet):
        return ClassFeatures(net, T, dtype, device, class_rows)
    return TimeFeatures(net, T, dtype, device)


@torch.inference_mode()
def _by_one_thread(of: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Compute a table of the numbers below `count`, (count, channels).

    One CPU thread computes it, so that every worker starts from the same numbers: the products are
    thin, and their bits would depend on the kernels.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return of(torch.arange(count))
    finally:
        torch.set_num_threads(threads)
