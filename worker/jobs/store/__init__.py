"""The job store's server: its URL, connections to it, and what its errors mean."""
