"""The network's layers on a CPU: weights laid out once, and kernels of this project in C."""
