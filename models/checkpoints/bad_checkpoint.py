"""The one error of a model folder that cannot be loaded."""

from __future__ import annotations


class BadCheckpoint(Exception):
    """A model folder that cannot be loaded; the text names file, key and remedy."""
