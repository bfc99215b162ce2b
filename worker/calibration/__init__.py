"""Measuring how this machine runs a model best, and noticing at run time that it became slower."""
