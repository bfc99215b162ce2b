"""Webhooks: messages to the owner's server that a job has ended.

What is sent and signed, where it may go, and how it gets there.
"""
