"""What holds for all tests of the API."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def without_reconciliation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave jobs running whose shards nobody holds: `IdleWorker` has no leases.

    tests/integration/worker/jobs has the tests of the reconciliation.
    """
    monkeypatch.setattr("worker.jobs.reaper.RECONCILE_EVERY", 10**9)
