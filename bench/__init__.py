"""What the figures in docs/reference/benchmarks.md came from. Each is `python -m bench.NAME`."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the `ddpm` command does; OpenMP reads it when torch is loaded
