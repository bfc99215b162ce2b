"""Scripts that check the repository. No package of the service imports them."""
