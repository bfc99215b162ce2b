"""Triton without a GPU: it interprets kernels on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.aside import Aside, aside


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Aside]:
    with aside(TRITON_INTERPRET="1") as calls:
        yield calls
