"""The models that a worker serves, and those that are added while it does."""
