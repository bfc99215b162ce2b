"""Seeded requests that no client library sends, against a real API; every answer is checked."""
