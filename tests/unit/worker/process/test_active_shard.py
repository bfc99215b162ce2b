"""When a shard with which workers were lost is above suspicion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.process.active_shard import ActiveShard


@pytest.mark.parametrize(
    ("suspect", "done", "kept", "remains"),
    [
        (True, 0, 0, True),
        (True, 100, 0, True),  # it has passed the point, and nobody else knows
        (True, 100, 64, True),  # saved where it was lost
        (True, 100, 65, False),
        (False, 0, 0, False),
    ],
)
def test_a_suspect_remains_one_until_it_is_saved_from_beyond_the_point_where_it_was_lost(
    suspect, done, kept, remains
):
    shard = SimpleNamespace(id="a-0", count=1, recipe=SimpleNamespace(steps=200))
    engine = SimpleNamespace(rows_done=lambda _: done)
    lease = SimpleNamespace(shard=shard, suspect=suspect, reached=64)
    held = ActiveShard(cast("Any", lease), cast("Any", SimpleNamespace(engine=engine)), {0}, kept)
    assert held.is_suspect() is remains
