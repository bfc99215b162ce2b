"""The network's layers on a CPU: weights laid out once, and kernels of our own in C."""
