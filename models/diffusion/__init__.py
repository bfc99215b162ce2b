"""The process of the paper: schedules, samplers as tables, noise, the plain sampling loop. Reads no files."""
