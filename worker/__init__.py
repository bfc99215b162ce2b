"""GPU workers: the engine that steps chains, and what feeds it from Redis."""
