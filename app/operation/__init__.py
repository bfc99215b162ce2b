"""Loops that an API process runs beside its requests, its metrics and its connections to Redis."""
