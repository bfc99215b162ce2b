"""The network's layers on a GPU: Triton kernels that give the same bits in every batch."""
