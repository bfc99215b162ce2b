"""`ddpm worker`, whose device fails in the first step and answers nothing from then on."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from cli.main import app
from worker.engine.engine import Engine


def throw(engine: Engine, *args: Any) -> NoReturn:
    """Fail, as a device does that falls off the bus."""
    raise RuntimeError("CUDA error: unspecified launch failure")


def hang(engine: Engine, *args: Any) -> NoReturn:
    """Wait for the device for ever."""
    while True:
        threading.Event().wait()


if __name__ == "__main__":
    Engine.step = throw  # type: ignore[method-assign]
    Engine.settle = Engine.snapshot = hang  # type: ignore[method-assign]
    app()
