"""Finding out at the start how this machine runs a model best, and noticing while it runs that it has become slower."""
