"""Jobs as the job store holds them: how they are read, listed, estimated and waited for.

The job store is Redis.
"""
