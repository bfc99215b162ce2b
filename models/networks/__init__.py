"""eps_theta: the U-Net and its configuration."""
