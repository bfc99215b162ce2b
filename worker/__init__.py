"""Workers, on a CPU or a GPU: the engine that steps chains, and what feeds it from Redis."""
