"""Problems: every error that a client can see, and how an exception becomes one."""
