"""The families of networks: which one a config.json is of, and how it is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.networks.linear_attention_config import LINEAR_ATTENTION, LinearAttentionConfig
from models.networks.linear_attention_unet import LinearAttentionUNet
from models.networks.network import DenoisingNetwork
from models.networks.network_config import NetworkConfig
from models.networks.unet import UNet
from models.networks.unet_config import UNetConfig


def read_config(config: Mapping[str, Any], size: tuple[int, int] | None = None) -> NetworkConfig:
    """Read a network's options from the content of config.json, whose `_class_name` is its family.

    Args:
        config: The content.
        size: Height and width of a network whose `sample_size` is null.

    Raises:
        UnsupportedConfig: The network is not supported. The text names the key and its value.
    """
    if config.get("_class_name") == LINEAR_ATTENTION:
        return LinearAttentionConfig.from_json(config, size)
    return UNetConfig.from_diffusers(config, size)


def build(cfg: NetworkConfig) -> DenoisingNetwork:
    """Make the network that options describe, with weights that are not trained.

    Raises:
        UnsupportedConfig: There is no such network.
        TypeError: The options are of no family.
    """
    if isinstance(cfg, LinearAttentionConfig):
        return LinearAttentionUNet(cfg)
    if isinstance(cfg, UNetConfig):
        return UNet(cfg)
    raise TypeError(f"{type(cfg).__name__} is of no family of networks")
