"""The commands of `make bench`. Each is `python -m bench.commands.NAME`."""
