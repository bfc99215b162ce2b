"""A shard in an engine, from its admission to its end."""

from __future__ import annotations

from dataclasses import dataclass

from worker.loaded import LoadedModel
from worker.rq_worker import Lease


@dataclass(slots=True)
class Held:
    """`left` are the indices still running."""

    lease: Lease
    model: LoadedModel
    left: set[int]

    def chains(self) -> list[tuple[str, int]]:
        return [(self.lease.shard.id, index) for index in self.left]

    def progress(self) -> tuple[int, int]:
        """The step of the least advanced image, and the image-steps done; asked only while some are left."""
        shard = self.lease.shard
        rows = [self.model.engine.rows_done(chain) for chain in self.chains()]
        return min(rows), sum(rows) + shard.recipe.steps * (shard.count - len(rows))
