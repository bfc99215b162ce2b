"""What a training run shows while it runs."""
