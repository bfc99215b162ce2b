"""One module for each command of `ddpm`."""
