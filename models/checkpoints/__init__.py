"""Model folders: how they are read, written, described and listed."""
