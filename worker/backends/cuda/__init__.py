"""The network's layers on a GPU: kernels of our own in Triton, with the same bits in every batch."""
