"""Access: who is let in, and how often."""
