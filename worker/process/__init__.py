"""The process around the engine: one thread steps, the others carry shards in and images out."""
