"""Suspicion of a shard with which workers were lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.process.active_shard import ActiveShard


@pytest.mark.parametrize(
    ("suspect", "saved_steps", "remains"),
    [
        (True, 0, True),
        (True, 64, True),  # saved where workers were lost
        (True, 65, False),
        (False, 0, False),
    ],
)
def test_a_suspect_remains_one_until_it_is_saved_from_beyond_the_losses(
    suspect, saved_steps, remains
):
    lease = SimpleNamespace(suspect=suspect, reached=64)
    active = ActiveShard(cast("Any", lease), cast("Any", None), {0}, 0.0, saved_steps)
    assert active.is_suspect() is remains
