"""The PNGs of jobs: read, put on contact sheets, packed into archives, served."""
