"""The benchmarks behind the figures in docs/reference/benchmarks.md.

Each is `python -m bench.commands.NAME`.
"""

import os

# The `ddpm` command sets it too. OpenMP reads it when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
