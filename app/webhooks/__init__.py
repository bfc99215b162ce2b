"""Tells the owner's server that a job has ended: what is sent and signed, where it may go, and that it gets there."""
