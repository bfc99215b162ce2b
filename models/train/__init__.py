"""Algorithm 1: training eps_theta."""
