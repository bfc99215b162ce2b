"""What `make bench` runs. Each is `python -m bench.commands.NAME`."""
