"""`ddpm worker`, whose network throws in every step of more than one chain."""

from __future__ import annotations

from typing import Any

from cli.main import app
from worker.engine.engine import Engine

MESSAGE = "CUDA error: an illegal memory access was encountered\nmore that nobody is to read"

if __name__ == "__main__":
    step = Engine.step

    def throw(engine: Engine, *args: Any) -> Any:
        if len(engine) > 1:
            raise RuntimeError(MESSAGE)
        return step(engine, *args)

    Engine.step = throw  # type: ignore[method-assign]
    app()
