"""What the API and the workers agree on, without torch.

It says what a job is, what its keys are called, how shards move, and how a job's state changes.
"""
