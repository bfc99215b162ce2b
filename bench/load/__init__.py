"""Load on the service: arrivals, crowds of clients, and workers that compute nothing."""
