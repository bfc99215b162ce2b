"""The commands of `ddpm`, a module for each."""
