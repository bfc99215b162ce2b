"""The systems under comparison, this service among them."""
