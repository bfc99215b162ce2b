"""Every error that a client can see, and the one place where an exception becomes an answer."""
