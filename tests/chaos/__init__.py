"""The whole service while its processes are killed: do all jobs finish, and with the same bytes? `make chaos`, docs/chaos.md."""
