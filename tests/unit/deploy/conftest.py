from __future__ import annotations

import pytest

from tests.support.kubernetes import OVERLAYS, Manifest, render


@pytest.fixture(scope="session", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """What an overlay sends to a cluster."""
    return render(OVERLAYS[request.param])
