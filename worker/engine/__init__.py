"""The engine: chains in a pool, picked for every step and stepped in batches. Knows no Redis, no RQ and no HTTP."""
