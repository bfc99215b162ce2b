"""A shard in an engine, from its admission to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from worker.process.loaded_model import LoadedModel
from worker.process.shard_leases import Lease


@dataclass(slots=True)
class ActiveShard:
    """`left` are the indices still running, `kept` the image-steps that are saved. It is copied for the first time a while
    after its admission: copied at once, a shard that ends its workers would come on by a step each time.
    """

    lease: Lease
    model: LoadedModel
    left: set[int]
    kept: int = 0
    copied_at: float = field(default_factory=time.monotonic)

    def chains(self) -> list[tuple[str, int]]:
        return [(self.lease.shard.id, index) for index in self.left]

    def progress(self) -> tuple[int, int]:
        """The step of the least advanced image, and the image-steps done; asked only while some are left."""
        shard = self.lease.shard
        rows = [self.model.engine.rows_done(chain) for chain in self.chains()]
        return min(rows), sum(rows) + shard.recipe.steps * (shard.count - len(rows))

    def is_suspect(self) -> bool:
        """Whether workers were lost with it, and it is not saved from beyond the point where that happened.

        Passed is not enough: the next one may end this worker before anybody knows of it, and then that is this one's loss.
        """
        return self.lease.suspect and self.kept <= self.lease.reached
