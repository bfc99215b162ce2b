"""A job's progress as server-sent events, with previews of its running images."""
