"""What an API process does beside answering, and how it is watched: background loops, the reaper, metrics, its Redis client."""
