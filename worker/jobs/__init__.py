"""What the API and the workers agree on: what a job is, what its keys are called, and every change of its state. No torch."""
