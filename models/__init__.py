"""Denoising diffusion probabilistic models: process, network, checkpoints, training, evaluation."""
