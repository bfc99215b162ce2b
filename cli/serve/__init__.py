"""Running the whole service here: the supervisor, its children, the embedded job store."""
