"""Load: arrivals, crowds of clients, and workers that compute nothing."""
