"""One router for each kind of resource; handlers are a few lines and hold no logic."""
