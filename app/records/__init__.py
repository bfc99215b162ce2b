"""Jobs as the job store holds them: reading them, many at once, their place in the queue, and waking who waits for them."""
