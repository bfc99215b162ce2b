"""The paper's process: schedules, samplers as tables, noise, the plain sampling loop. No files."""
