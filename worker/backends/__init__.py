"""The network as it is served, and the machine it runs on: layers and kernels for a CPU and for a GPU. Knows no Redis."""
