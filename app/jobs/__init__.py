"""Jobs: accepting, reading, awaiting, cancelling and deleting them, and fetching their images."""
