"""The engine: chains lie in a pool, and every step runs a batch of them. Knows no Redis or HTTP."""
