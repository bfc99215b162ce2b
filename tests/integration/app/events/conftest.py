"""An API whose timings a test may change before it serves it."""

from __future__ import annotations

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import ApiSettings


@pytest.fixture
def app(settings: ApiSettings) -> FastAPI:
    """An API of the test's own, not served yet."""
    return create_app(settings)
