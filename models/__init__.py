"""Denoising diffusion probabilistic models: schedule, plans, noise, network, checkpoints, training."""
