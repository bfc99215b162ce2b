"""`ddpm worker`, whose leases lapse in a third of the time: tests of lost workers wait less.

All else is as ever; there are as many heartbeats a lease.
"""

from __future__ import annotations

from functools import partial

import worker.__main__ as started
from cli.main import app
from worker.jobs.reaper import REAP_EVERY_S
from worker.jobs.shard_queue import LEASE_S
from worker.process.shard_leases import ShardLeases


def shorten() -> None:
    """Let the worker that this process becomes have such leases."""
    every_s = REAP_EVERY_S / 3
    vars(started).update(
        ShardLeases=partial(ShardLeases, lease_s=LEASE_S / 3),
        HEARTBEAT_EVERY_S=every_s,
        REAP_EVERY_S=every_s,
    )


if __name__ == "__main__":
    shorten()
    app()
