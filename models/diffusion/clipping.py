"""What a row does beyond sums of products: thresholds of an image, and variances of a network.

Each image is computed by itself, and a number is rounded to float32 once. So batches of all sizes
agree to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped(x_0_hat: Tensor, bound: Tensor, ratio: Tensor, most: Tensor) -> Tensor:
    """Clip x_0_hat, or threshold it where `ratio` is above 0.

    Args:
        x_0_hat: (B, C, H, W).
        bound: The bound, one number or (B, 1, 1, 1), like the following two.
        ratio: The quantile of dynamic thresholding; 0: the bound holds.
        most: The largest threshold.
    """
    if not bool((ratio > 0).any()):
        return x_0_hat.clip(-bound, bound)
    return torch.where(ratio > 0, thresholded(x_0_hat, ratio, most), x_0_hat.clip(-bound, bound))


def thresholded(x_0_hat: Tensor, ratio: Tensor, most: Tensor) -> Tensor:
    """Clip each image to the quantile of its |x_0_hat|, and divide by it: dynamic thresholding.

    The quantile is at least 1, and at most `most` (Saharia et al., 2022, section 2.3). It lies
    between two values as in `torch.quantile`.

    Args:
        x_0_hat: (B, C, H, W).
        ratio: The quantile, from 0 to 1: one number or (B, 1, 1, 1).
        most: The largest threshold, of the same shape.
    """
    ordered = x_0_hat.abs().flatten(1).sort(dim=1).values
    rank = (ratio.double() * (ordered.shape[1] - 1)).reshape(-1, 1).expand(len(ordered), 1)
    below = rank.floor()
    low = ordered.gather(1, below.long()).double()
    high = ordered.gather(1, rank.ceil().long()).double()
    quantile = low + (rank - below) * (high - low)
    largest = most.double().reshape(-1, 1).expand_as(quantile)
    threshold = quantile.clamp(min=1).minimum(largest).float()[:, :, None, None]
    return x_0_hat.clip(-threshold, threshold) / threshold


def standard_deviation(s: Tensor, spread: Tensor, own: Tensor, v: Tensor) -> Tensor:
    """Compute sigma = s exp(spread v) + own sqrt(v), or s if the network returned no v.

    Args:
        s: One number or (B, 1, 1, 1), like the following two.
        spread: What v is multiplied by.
        own: 1 where v is the variance itself, else 0.
        v: (B, C, H, W), or (B, 0, H, W) of a network that learned no variance.

    Returns:
        float32, in a shape that broadcasts to the image's.
    """
    if not v.shape[1]:
        return s
    v = v.double()
    sigma = s.double() * (spread.double() * v).exp() + own.double() * v.clamp(min=0).sqrt()
    return sigma.float()
