"""Measures of how good a trained network is."""
