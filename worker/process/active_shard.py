"""A shard in an engine, from its admission to its end."""

from __future__ import annotations

from dataclasses import dataclass

from worker.process.loaded_model import LoadedModel
from worker.process.shard_leases import Lease


@dataclass(slots=True)
class ActiveShard:
    """A shard whose chains are in the engine of a model.

    The first snapshot is delayed, because `copied_at` starts at the admission. Otherwise a shard
    that crashes its worker would advance by one step per attempt, and the loss counter would never
    reach its limit.

    Attributes:
        lease: this worker's hold on the shard.
        model: the model that runs it.
        left: indices of the images that have not left the engine.
        copied_at: when its chains were last copied, in seconds of the loop's clock.
        saved_steps: image-steps in the snapshot that was saved last.
        admitted_steps: image-steps that had been done when it was admitted.
    """

    lease: Lease
    model: LoadedModel
    left: set[int]
    copied_at: float
    saved_steps: int = 0
    admitted_steps: int = 0

    def chains(self) -> list[tuple[str, int]]:
        """Return the engine's names of the chains that are left."""
        return [(self.lease.shard.id, index) for index in self.left]

    def progress(self) -> tuple[int, int]:
        """Return the step of the least advanced image, and the image-steps done.

        Raises:
            ValueError: no image is left.
        """
        shard = self.lease.shard
        rows = [self.model.engine.rows_done(chain) for chain in self.chains()]
        return min(rows), sum(rows) + shard.recipe.steps * (shard.count - len(rows))

    def is_parked(self) -> bool:
        """Tell whether no chain of it has taken a step here."""
        return self.progress()[1] == self.admitted_steps

    def is_suspect(self) -> bool:
        """Tell whether the shard may still end the worker, as it ended others.

        A suspect stays one until a snapshot from beyond the point of the losses is saved. To have
        passed that point is not enough: if another shard then ended this worker before the snapshot
        was saved, the loss would count for this one.
        """
        return self.lease.suspect and self.saved_steps <= self.lease.reached
