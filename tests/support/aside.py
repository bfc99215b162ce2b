"""Calls in a process with an environment of its own.

Triton reads at its import whether it is to interpret kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

Aside = Callable[..., Any]


@contextmanager
def aside(**environment: str) -> Iterator[Aside]:
    """Yield what calls `function` with `*args` in that process, one call after the other."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=_set, initargs=(environment,)
    ) as process:
        yield lambda *task, **options: process.submit(*task, **options).result()


def _set(environment: dict[str, str]) -> None:
    os.environ.update(environment)
