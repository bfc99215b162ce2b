"""What holds for all tests of the API."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _without_reconciliation(without_reconciliation: None) -> None:
    """tests/integration/worker/jobs has the tests of the reconciliation."""
