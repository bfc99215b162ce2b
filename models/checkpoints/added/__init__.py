"""The folder of added models: what is being added, and what is kept for jobs that need it."""
