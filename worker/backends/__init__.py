"""The network as it is served, and its machine: layers and kernels for CPUs and GPUs. No Redis."""
