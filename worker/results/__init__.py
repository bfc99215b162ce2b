"""The results store: where finished PNGs and large snapshots lie when not in Redis."""
