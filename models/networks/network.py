"""eps_theta as everything else sees it, whatever layers it has.

Shapes: B batch, C channels, H height, W width, F time features.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.networks.network_config import NetworkConfig


class DenoisingNetwork(nn.Module):
    """The network: (x_t, t) -> eps, x_0 or v, as the checkpoint was trained.

    A conditional network takes a class label as well. One that learned a variance returns it in
    the second half of its channels.
    """

    cfg: NetworkConfig

    def time_features(self, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute what the blocks see of the timestep t (B,), and of the class: (B, F)."""
        raise NotImplementedError

    def denoise(self, x: Tensor, features: Tensor) -> Tensor:
        """Run the network on time features: x (B, C, H, W), features (B, F) -> (B, C', H, W)."""
        raise NotImplementedError

    @property
    def divides_by_t(self) -> bool:
        """True if the output of `denoise` is divided by t."""
        return False

    def divide_by_t(self, out: Tensor, t: Tensor) -> Tensor:
        """Divide the output (B, C', H, W) by t (B,), or by 1 where t is 0."""
        return out / t.clamp(min=1)[:, None, None, None]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Run the network: x (B, C, H, W), t int (B,), labels as in `time_features`.

        Returns:
            (B, C', H, W), with C' = C, or 2 C if it learned a variance.

        Raises:
            ValueError: Labels are missing, or the network takes none.
        """
        out = self.denoise(x, self.time_features(t, labels))
        return self.divide_by_t(out, t) if self.divides_by_t else out

    def parameter_count(self) -> int:
        """Count the weights."""
        return sum(p.numel() for p in self.parameters())
