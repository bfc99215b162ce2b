"""Routes, one file for each kind of resource. Handlers are a few lines and hold no logic."""
