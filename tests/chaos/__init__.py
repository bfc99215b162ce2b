"""The whole service while its processes are killed: `make chaos`, docs/how-to/test-with-chaos.md.

Do all jobs finish, and with the same bytes?
"""
