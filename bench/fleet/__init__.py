"""The whole service around networks that cost nothing, or a given time."""
