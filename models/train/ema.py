"""Exponential moving average of the weights, with warm-up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def decay_at(update: int, decay: float) -> float:
    """Compute the decay after update n: min(decay, (1 + n) / (10 + n)).

    Without this warm-up, .9999 would still hold 37 % of the random start after 10k updates.
    """
    return min(decay, (1 + update) / (10 + update))


class EMA:
    """Float32 averages of parameters, in their order."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """Begin with the parameters as they are."""
        self.decay = decay
        self.averages = {name: p.detach().float().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], update: int) -> None:
        """Fold in the weights after update number `update` (0-based)."""
        averages = list(self.averages.values())
        weight = 1 - decay_at(update, self.decay)
        torch._foreach_lerp_(averages, list(parameters.values()), weight)
